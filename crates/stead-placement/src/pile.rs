//! What a member has to give, as numbers that are quick to compare: of all of a plan's time, most goes into looking for
//! pairs of items to exchange.
//!
//! Owns the search for the pairs that fit. Does not own whether they may be exchanged.

use crate::{
    item::{Item, Items},
    state::State,
};

/// So many resources are compared at once.
const LANES: usize = 4;
/// A number for each of some resources. Where there are fewer resources than lanes, nobody asks for the rest, and nothing
/// is said of it.
type Lanes = [f64; LANES];

/// Far below one of any resource (they are counted in MiB and thousandths), far above rounding.
const SLACK: f64 = 1e-3;

fn lanes(values: impl IntoIterator<Item = f64>, rest: f64, to: &mut Vec<Lanes>) {
    let mut values = values.into_iter().peekable();
    while values.peek().is_some() {
        to.push(std::array::from_fn(|_| values.next().unwrap_or(rest)));
    }
}

/// How a member's overhang rises with what is promised there, and what it is now, for each resource.
#[derive(Debug, Default)]
struct Slopes {
    slope: Vec<Lanes>,
    over: Vec<Lanes>,
}

impl Slopes {
    /// Makes them those of a member.
    fn set(&mut self, state: &State<'_>, m: u32) {
        self.slope.clear();
        self.over.clear();
        lanes(state.slopes(m).map(|(slope, _)| slope), 0.0, &mut self.slope);
        lanes(state.slopes(m).map(|(_, over)| over), f64::NEG_INFINITY, &mut self.over);
    }

    /// The overhang with so many times this.
    fn over_with(&self, times: f64, demand: &[Lanes]) -> f64 {
        let mut most = [f64::NEG_INFINITY; LANES];
        for ((slope, over), demand) in self.slope.iter().zip(&self.over).zip(demand) {
            for r in 0..LANES {
                most[r] = most[r].max(over[r] + times * demand[r] * slope[r]);
            }
        }
        most.into_iter().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The overhang when `back` has come for `out` (-1), or has gone for it (1).
    fn over_after(&self, sign: f64, out: &[Lanes], back: &[Lanes]) -> f64 {
        let mut most = f64::NEG_INFINITY;
        for (c, (out, back)) in out.iter().zip(back).enumerate() {
            for r in 0..LANES {
                most = most.max(self.over[c][r] + sign * (out[r] - back[r]) * self.slope[c][r]);
            }
        }
        most
    }
}

/// Items of one member.
#[derive(Debug, Default)]
pub struct Pile {
    items: Vec<Item>,
    /// What each asks of each resource; so many for each item.
    demand: Vec<Lanes>,
    chunks: usize,
    /// The least and the most that any of them asks.
    least: Vec<Lanes>,
    most: Vec<Lanes>,
    /// For each resource (and lane) what is asked of it, the least first, and by whom.
    sorted: Vec<(f64, u32)>,
}

impl Pile {
    /// The items of a member that can be moved, at most `limit`, the latest comers first.
    pub fn new(state: &State<'_>, items: &Items, m: u32, limit: usize) -> Self {
        let found = items.on(state, m, limit);
        let chunks = state.p.width().div_ceil(LANES);
        let mut demand = Vec::with_capacity(found.len() * chunks);
        for item in &found {
            lanes(items.demand(state.p, *item).iter().map(|d| *d as f64), 0.0, &mut demand);
        }
        let mut pile = Self {
            items: Vec::new(),
            demand,
            chunks,
            least: Vec::new(),
            most: Vec::new(),
            sorted: Vec::new(),
        };
        for c in 0..chunks {
            let ends = |start: f64, which: fn(f64, f64) -> f64| -> Lanes {
                let column = pile.demand.iter().skip(c).step_by(chunks);
                column.fold([start; LANES], |ends, d| std::array::from_fn(|r| which(ends[r], d[r])))
            };
            let (least, most) = (ends(f64::INFINITY, f64::min), ends(f64::NEG_INFINITY, f64::max));
            pile.least.push(least);
            pile.most.push(most);
            for r in 0..LANES {
                let begin = pile.sorted.len();
                let column = pile.demand.iter().skip(c).step_by(chunks).zip(0..);
                pile.sorted.extend(column.map(|(d, n)| (d[r], n)));
                pile.sorted[begin..].sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            }
        }
        pile.items = found;
        pile
    }

    /// Its items and what each asks for.
    fn items(&self) -> impl Iterator<Item = (Item, &[Lanes])> {
        self.items.iter().copied().zip(self.demand.chunks_exact(self.chunks.max(1)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Those that ask for so much of a resource: what each asks of it, and its number.
    fn asking(&self, resource: usize, least: f64, most: f64) -> &[(f64, u32)] {
        let all = &self.sorted[resource * self.len()..][..self.len()];
        let begin = all.partition_point(|(asked, _)| *asked < least);
        let end = all[begin..].partition_point(|(asked, _)| *asked <= most);
        &all[begin..][..end]
    }

    fn of(&self, n: u32) -> &[Lanes] {
        &self.demand[n as usize * self.chunks..][..self.chunks]
    }
}

/// Items without which a member is better off.
#[derive(Debug)]
pub struct Light<'a> {
    /// Each with the member's overhang then, and what it asks for.
    items: Vec<(Item, f64, &'a [Lanes])>,
    /// The least that any of them asks of each resource.
    least: Vec<Lanes>,
    here: Slopes,
    /// The largest overhang of a member that is good enough.
    enough: f64,
}

impl<'a> Light<'a> {
    /// Of a member's first items.
    pub fn new(state: &State<'_>, m: u32, pile: &'a Pile, limit: usize, enough: f64) -> Self {
        let mut here = Slopes::default();
        here.set(state, m);
        let mut least = vec![[f64::INFINITY; LANES]; pile.chunks];
        let mut items = Vec::new();
        for (item, out) in pile.items().take(limit) {
            let left = here.over_with(-1.0, out);
            if left <= enough {
                for (least, out) in least.iter_mut().zip(out) {
                    *least = std::array::from_fn(|r| least[r].min(out[r]));
                }
                items.push((item, left, out));
            }
        }
        Self { items, least, here, enough }
    }
}

/// What may go from one member to another, and what may come back for it, so that neither member's overhang is more than
/// enough. Made once and used for many: making it anew takes longer than using it.
#[derive(Debug, Default)]
pub struct Fit {
    there: Slopes,
    /// By how much more may come back than goes, at least and at most.
    least: Vec<Lanes>,
    most: Vec<Lanes>,
}

impl Fit {
    /// Calls `found` with all items that may go to a member alone, and the larger overhang of the two members then.
    pub fn singles(
        &mut self,
        state: &State<'_>,
        light: &Light<'_>,
        to: u32,
        mut found: impl FnMut(Item, f64),
    ) {
        self.there.set(state, to);
        if self.there.over_with(1.0, &light.least) > light.enough {
            return;
        }
        for (item, left, out) in &light.items {
            let over = left.max(self.there.over_with(1.0, out));
            if over <= light.enough {
                found(*item, over);
            }
        }
    }

    /// Calls `found` with all pairs of items that fit (which goes, which comes back, the larger overhang of the two members
    /// then), until it says that there is no need of another partner for the first.
    pub fn pairs(
        &mut self,
        state: &State<'_>,
        light: &Light<'_>,
        to: u32,
        theirs: &Pile,
        mut found: impl FnMut(Item, Item, f64) -> bool,
    ) {
        let (here, enough) = (&light.here, light.enough);
        self.there.set(state, to);
        self.least.clear();
        self.most.clear();
        let (mut possible, mut narrow) = (true, (f64::INFINITY, 0));
        for c in 0..theirs.chunks {
            let (a, b) = ((&here.slope[c], &here.over[c]), (&self.there.slope[c], &self.there.over[c]));
            let least: Lanes = std::array::from_fn(|r| (b.1[r] - enough) / b.0[r] - SLACK);
            let most: Lanes = std::array::from_fn(|r| (enough - a.1[r]) / a.0[r] + SLACK);
            for r in 0..LANES {
                possible &= least[r] <= most[r];
                let part = (most[r] - least[r]) / (theirs.most[c][r] - theirs.least[c][r]);
                if part < narrow.0 {
                    narrow = (part, c * LANES + r);
                }
            }
            self.least.push(least);
            self.most.push(most);
        }
        if !possible || theirs.len() == 0 {
            return;
        }
        let narrow = narrow.1;
        let margin = (self.least[narrow / LANES][narrow % LANES], self.most[narrow / LANES][narrow % LANES]);
        for (item, _, out) in &light.items {
            if self.outside(out, &theirs.most, &theirs.least) {
                continue;
            }
            let asked = out[narrow / LANES][narrow % LANES];
            for (_, n) in theirs.asking(narrow, asked + margin.0, asked + margin.1) {
                let back = theirs.of(*n);
                if self.outside(out, back, back) {
                    continue;
                }
                let over = here.over_after(-1.0, out, back).max(self.there.over_after(1.0, out, back));
                if over <= enough && !found(*item, theirs.items[*n as usize], over) {
                    break;
                }
            }
        }
    }

    /// Whether what comes back for this is too little even where it is the most, or too much even where it is the least.
    fn outside(&self, out: &[Lanes], most: &[Lanes], least: &[Lanes]) -> bool {
        let mut outside = false;
        for (c, out) in out.iter().enumerate() {
            for r in 0..LANES {
                outside |= most[c][r] < out[r] + self.least[c][r];
                outside |= least[c][r] > out[r] + self.most[c][r];
            }
        }
        outside
    }
}
