//! A terminal and its picture: cells of the emulator, drawn with a bitmap font.
//!
//! Owns the look of each cell. Does not own the clients ([`super::rfb`]).

use alacritty_terminal::{
    Term,
    event::{Event, EventListener},
    grid::Dimensions,
    term::{Config, TermMode, cell::Flags},
    vte::ansi::{Color, CursorShape, NamedColor, Processor, Rgb},
};
use spleen_font::FONT_8X16;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Pixels of a cell.
pub const CELL_WIDTH: u16 = 8;
/// Pixels of a cell.
pub const CELL_HEIGHT: u16 = 16;
/// Replacement for characters without a glyph.
const UNKNOWN: char = '?';
/// Most bytes of the terminal's answers: a program may send requests without end.
const MAX_ANSWER_BYTES: usize = 64 << 10;

const FOREGROUND: u32 = 0x00d0_d0d0;
const BACKGROUND: u32 = 0x0000_0000;
/// The sixteen colours of a VGA console.
const PALETTE: [u32; 16] = [
    0x0000_0000,
    0x00aa_0000,
    0x0000_aa00,
    0x00aa_5500,
    0x0000_00aa,
    0x00aa_00aa,
    0x0000_aaaa,
    0x00aa_aaaa,
    0x0055_5555,
    0x00ff_5555,
    0x0055_ff55,
    0x00ff_ff55,
    0x0055_55ff,
    0x00ff_55ff,
    0x0055_ffff,
    0x00ff_ffff,
];

/// The look of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Its character.
    pub character: char,
    /// `0x00rrggbb`.
    pub foreground: u32,
    /// `0x00rrggbb`.
    pub background: u32,
    /// Whether it is underlined.
    pub underline: bool,
}

/// All cells at one time, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Cells in a row.
    pub columns: usize,
    /// Cells.
    pub looks: Vec<Look>,
}

impl Picture {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.looks.len() / self.columns.max(1)
    }
    /// Pixels: width and height.
    pub fn size(&self) -> (u16, u16) {
        (self.columns as u16 * CELL_WIDTH, self.rows() as u16 * CELL_HEIGHT)
    }
    /// As text, without trailing blanks.
    pub fn text(&self) -> String {
        let rows = self.looks.chunks(self.columns.max(1));
        let lines = rows.map(|r| r.iter().map(|l| l.character).collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    }
}

struct Size {
    columns: usize,
    rows: usize,
}
impl Dimensions for Size {
    fn total_lines(&self) -> usize {
        self.rows
    }
    fn screen_lines(&self) -> usize {
        self.rows
    }
    fn columns(&self) -> usize {
        self.columns
    }
}

/// The terminal's answers to its program.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<u8>>>);

impl EventListener for Answers {
    fn send_event(&self, event: Event) {
        if let Event::PtyWrite(text) = event {
            let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if answers.len() + text.len() <= MAX_ANSWER_BYTES {
                answers.extend(text.into_bytes());
            }
        }
    }
}

/// A terminal.
pub struct Screen {
    term: Term<Answers>,
    parser: Processor,
    answers: Answers,
}

impl Screen {
    /// An empty terminal with as many cells as fit.
    pub fn new(width: u16, height: u16) -> Self {
        let answers = Answers::default();
        // VNC cannot scroll back.
        let config = Config { scrolling_history: 0, ..Config::default() };
        Self {
            term: Term::new(config, &fitting(width, height), answers.clone()),
            parser: Processor::new(),
            answers,
        }
    }
    /// Processes the program's output; returns the terminal's answer.
    pub fn print(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.parser.advance(&mut self.term, bytes);
        std::mem::take(&mut *self.answers.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Changes its size.
    pub fn resize(&mut self, width: u16, height: u16) {
        self.term.resize(fitting(width, height));
    }
    /// Columns and rows.
    pub fn cells(&self) -> (u16, u16) {
        (self.term.columns() as u16, self.term.screen_lines() as u16)
    }
    /// Whether the cursor keys are in application mode.
    pub fn application_keys(&self) -> bool {
        self.term.mode().contains(TermMode::APP_CURSOR)
    }
    /// Its present picture.
    pub fn picture(&self) -> Picture {
        let (columns, rows) = (self.term.columns(), self.term.screen_lines());
        let blank = Look { character: ' ', foreground: FOREGROUND, background: BACKGROUND, underline: false };
        let mut looks = vec![blank; columns * rows];
        let content = self.term.renderable_content();
        for cell in content.display_iter {
            let (row, column) = (cell.point.line.0, cell.point.column.0);
            let Some(look) = usize::try_from(row).ok().and_then(|r| looks.get_mut(r * columns + column))
            else {
                continue;
            };
            let flags = cell.flags;
            let (mut foreground, mut background) =
                (colour(cell.fg, flags.contains(Flags::BOLD)), colour(cell.bg, false));
            if flags.contains(Flags::DIM) {
                foreground = foreground >> 1 & 0x007f_7f7f;
            }
            if flags.contains(Flags::INVERSE) {
                std::mem::swap(&mut foreground, &mut background);
            }
            let hidden = flags.contains(Flags::HIDDEN) || flags.contains(Flags::WIDE_CHAR_SPACER);
            look.character = if hidden { ' ' } else { cell.c };
            look.foreground = foreground;
            look.background = background;
            look.underline = flags.intersects(Flags::ALL_UNDERLINES);
        }
        let cursor = content.cursor;
        if cursor.shape != CursorShape::Hidden
            && let Ok(row) = usize::try_from(cursor.point.line.0)
            && let Some(look) = looks.get_mut(row * columns + cursor.point.column.0)
        {
            (look.foreground, look.background) = (look.background, FOREGROUND);
            if look.foreground == look.background {
                look.foreground = BACKGROUND;
            }
        }
        Picture { columns, looks }
    }
}

fn fitting(width: u16, height: u16) -> Size {
    // A smaller terminal is useless, and no screen is larger.
    let cells = |pixels: u16, cell: u16| usize::from((pixels / cell).clamp(2, 1000));
    Size { columns: cells(width, CELL_WIDTH), rows: cells(height, CELL_HEIGHT) }
}

fn colour(colour: Color, bold: bool) -> u32 {
    match colour {
        Color::Spec(Rgb { r, g, b }) => u32::from(r) << 16 | u32::from(g) << 8 | u32::from(b),
        Color::Indexed(n) => indexed(n, bold),
        Color::Named(NamedColor::Foreground) if bold => PALETTE[15],
        Color::Named(NamedColor::Foreground | NamedColor::BrightForeground) => FOREGROUND,
        Color::Named(NamedColor::DimForeground) => FOREGROUND >> 1 & 0x007f_7f7f,
        Color::Named(NamedColor::Background) => BACKGROUND,
        Color::Named(name) => indexed((name as usize % 256) as u8, bold),
    }
}

/// xterm's 256 colours: 16, a cube of 6, a scale of grey.
fn indexed(n: u8, bold: bool) -> u32 {
    match n {
        0..=7 if bold => PALETTE[usize::from(n) + 8],
        0..=15 => PALETTE[usize::from(n)],
        16..=231 => {
            let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * u32::from(step) };
            let n = n - 16;
            level(n / 36) << 16 | level(n / 6 % 6) << 8 | level(n % 6)
        }
        232..=255 => 0x0001_0101 * (8 + 10 * u32::from(n - 232)),
    }
}

/// Rows of a glyph, a bit a pixel.
type Glyph = [u8; CELL_HEIGHT as usize];

/// Draws cells.
pub struct Font {
    glyphs: HashMap<char, Glyph>,
    unknown: Glyph,
}

impl Default for Font {
    fn default() -> Self {
        let glyphs = psf1(FONT_8X16);
        Self { unknown: glyphs.get(&UNKNOWN).copied().unwrap_or_default(), glyphs }
    }
}

/// Parses a font of the Linux console, version 1: `36 04 mode height`, glyphs, and for each the characters it stands
/// for, in UCS-2 up to FFFF; after FFFE come sequences, which a cell cannot show. The crate's own reader confuses this
/// version's height with its mode.
fn psf1(file: &[u8]) -> HashMap<char, Glyph> {
    let mut found = HashMap::new();
    let [0x36, 0x04, mode, height, rest @ ..] = file else { return found };
    let count = if mode & 1 == 0 { 256 } else { 512 };
    let size = usize::from(*height);
    if size != usize::from(CELL_HEIGHT) || rest.len() < count * size {
        return found;
    }
    let (glyphs, table) = rest.split_at(count * size);
    let mut units = table.chunks_exact(2).map(|u| u16::from_le_bytes([u[0], u[1]]));
    for glyph in glyphs.chunks_exact(size) {
        let glyph = Glyph::try_from(glyph).unwrap_or_default();
        let mut sequences = false;
        for unit in units.by_ref().take_while(|u| *u != 0xffff) {
            sequences |= unit == 0xfffe;
            if let Some(character) = char::from_u32(unit.into()).filter(|_| !sequences) {
                found.insert(character, glyph);
            }
        }
    }
    found
}

impl Font {
    fn glyph(&self, character: char) -> Glyph {
        self.glyphs.get(&character).copied().unwrap_or(self.unknown)
    }

    /// Pixels (`0x00rrggbb`) of adjacent cells in one row, line by line.
    pub fn draw(&self, looks: &[Look]) -> Vec<u32> {
        let width = looks.len() * usize::from(CELL_WIDTH);
        let mut pixels = vec![0; width * usize::from(CELL_HEIGHT)];
        for (n, look) in looks.iter().enumerate() {
            let glyph = self.glyph(look.character);
            for (y, bits) in glyph.iter().enumerate() {
                let underlined = look.underline && y == usize::from(CELL_HEIGHT) - 2;
                for x in 0..usize::from(CELL_WIDTH) {
                    let on = underlined || bits & (0x80 >> x) != 0;
                    pixels[y * width + n * usize::from(CELL_WIDTH) + x] =
                        if on { look.foreground } else { look.background };
                }
            }
        }
        pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_prints_and_is_answered() {
        let mut screen = Screen::new(800, 600);
        assert_eq!(screen.cells(), (100, 37));
        screen.print(b"hello \x1b[31mred\x1b[0m\r\n\xe2\x94\x80\xe2\x82\xac");
        let picture = screen.picture();
        assert!(picture.text().starts_with("hello red\n─€"), "{}", picture.text());
        assert_eq!(picture.looks[6].foreground, PALETTE[1]);
        // The cursor is at row 2, column 3.
        assert_eq!(screen.print(b"\x1b[6n"), b"\x1b[2;3R");
        assert_eq!(picture.looks[100 + 2].background, FOREGROUND, "the cursor is not seen");
        screen.resize(400, 160);
        assert_eq!(screen.cells(), (50, 10));
        assert_eq!(screen.picture().size(), (400, 160));
    }

    #[test]
    fn letters_are_drawn() {
        let font = Font::default();
        let look = |character| Look { character, foreground: 1, background: 0, underline: false };
        let drawn = |c| font.draw(&[look(c)]).iter().filter(|p| **p == 1).count();
        assert!(drawn('A') > 20);
        assert_eq!(drawn(' '), 0);
        assert!(drawn('─') >= 8, "lines are not drawn");
        assert_ne!(font.draw(&[look('é')]), font.draw(&[look('?')]));
    }

    #[test]
    fn any_bytes_are_accepted() {
        let mut screen = Screen::new(100, 100);
        for n in 0..2000_u32 {
            let byte = (n.wrapping_mul(2_654_435_761) >> 13) as u8;
            screen.print(&[0x1b, b'[', byte, byte.rotate_left(3), b'm', byte]);
        }
        screen.picture();
    }
}
