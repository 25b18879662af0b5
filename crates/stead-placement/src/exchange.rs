//! The search for items to move or exchange between two members, on tables that are fast to compare: planning spends most
//! of its time here.
//!
//! Owns the search for pairs that fit. Does not decide whether they may be exchanged.

use crate::{
    item::{Item, Items},
    state::State,
};

/// Number of resources that are compared at once.
const LANES: usize = 4;
/// One number for each of up to four resources. Unused lanes have no demand and do not affect any result.
type Lanes = [f64; LANES];

/// Far below one unit of any resource (MiB or thousandths), far above rounding errors.
const SLACK: f64 = 1e-3;

fn lanes(values: impl IntoIterator<Item = f64>, rest: f64, to: &mut Vec<Lanes>) {
    let mut values = values.into_iter().peekable();
    while values.peek().is_some() {
        to.push(std::array::from_fn(|_| values.next().unwrap_or(rest)));
    }
}

/// For each resource, the slope of a member's overhang over the promised amount, and its current overhang.
#[derive(Debug, Default)]
struct Slopes {
    slope: Vec<Lanes>,
    over: Vec<Lanes>,
}

impl Slopes {
    /// Loads the slopes of a member.
    fn set(&mut self, state: &State<'_>, m: u32) {
        self.slope.clear();
        self.over.clear();
        lanes(state.slopes(m).map(|(slope, _)| slope), 0.0, &mut self.slope);
        lanes(state.slopes(m).map(|(_, over)| over), f64::NEG_INFINITY, &mut self.over);
    }

    /// The overhang after adding `times` the demand.
    fn over_with(&self, times: f64, demand: &[Lanes]) -> f64 {
        let mut most = [f64::NEG_INFINITY; LANES];
        for ((slope, over), demand) in self.slope.iter().zip(&self.over).zip(demand) {
            for r in 0..LANES {
                most[r] = most[r].max(over[r] + times * demand[r] * slope[r]);
            }
        }
        most.into_iter().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The overhang after an exchange: `out` has left and `back` has arrived (sign -1), or the reverse (sign 1).
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
pub struct ItemTable {
    items: Vec<Item>,
    /// Demand of each item; `chunks` entries per item.
    demand: Vec<Lanes>,
    chunks: usize,
    /// The smallest and the largest demand of any item.
    least: Vec<Lanes>,
    most: Vec<Lanes>,
    /// For each lane, the items ordered by demand, as (demand, number).
    sorted: Vec<(f64, u32)>,
}

impl ItemTable {
    /// Collects the movable items of a member, at most `limit`, in descending order of number.
    pub fn new(state: &State<'_>, items: &Items, m: u32, limit: usize) -> Self {
        let found = items.on(state, m, limit);
        let chunks = state.p.width().div_ceil(LANES);
        let mut demand = Vec::with_capacity(found.len() * chunks);
        for item in &found {
            lanes(items.demand(state.p, *item).iter().map(|d| *d as f64), 0.0, &mut demand);
        }
        let mut table = Self {
            items: Vec::new(),
            demand,
            chunks,
            least: Vec::new(),
            most: Vec::new(),
            sorted: Vec::new(),
        };
        for c in 0..chunks {
            let ends = |start: f64, which: fn(f64, f64) -> f64| -> Lanes {
                let column = table.demand.iter().skip(c).step_by(chunks);
                column.fold([start; LANES], |ends, d| std::array::from_fn(|r| which(ends[r], d[r])))
            };
            let (least, most) = (ends(f64::INFINITY, f64::min), ends(f64::NEG_INFINITY, f64::max));
            table.least.push(least);
            table.most.push(most);
            for r in 0..LANES {
                let begin = table.sorted.len();
                let column = table.demand.iter().skip(c).step_by(chunks).zip(0..);
                table.sorted.extend(column.map(|(d, n)| (d[r], n)));
                table.sorted[begin..].sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            }
        }
        table.items = found;
        table
    }

    /// Its items with their demands.
    fn items(&self) -> impl Iterator<Item = (Item, &[Lanes])> {
        self.items.iter().copied().zip(self.demand.chunks_exact(self.chunks.max(1)))
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The items with a demand between `least` and `most` of a resource, as (demand, number).
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

/// Items whose departure brings a member's overhang down to `enough`.
#[derive(Debug)]
pub struct Leaving<'a> {
    /// Each item with the member's overhang without it, and its demand.
    items: Vec<(Item, f64, &'a [Lanes])>,
    /// The smallest demand of any of them, by resource.
    least: Vec<Lanes>,
    here: Slopes,
    /// The largest acceptable overhang.
    enough: f64,
}

impl<'a> Leaving<'a> {
    /// Selects among the first `limit` items of a member.
    pub fn new(state: &State<'_>, m: u32, table: &'a ItemTable, limit: usize, enough: f64) -> Self {
        let mut here = Slopes::default();
        here.set(state, m);
        let mut least = vec![[f64::INFINITY; LANES]; table.chunks];
        let mut items = Vec::new();
        for (item, out) in table.items().take(limit) {
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

/// Search for items that may go from one member to another, and for items that may come back in exchange, so that neither
/// member's overhang exceeds the acceptable one. Reused for many searches: allocating it takes longer than using it.
#[derive(Debug, Default)]
pub struct Fit {
    there: Slopes,
    /// Bounds on the difference between the returning and the leaving demand.
    least: Vec<Lanes>,
    most: Vec<Lanes>,
}

impl Fit {
    /// Calls `found` for each item that may go to a member without an exchange, with the larger overhang of the two members
    /// afterwards.
    pub fn singles(
        &mut self,
        state: &State<'_>,
        leaving: &Leaving<'_>,
        to: u32,
        mut found: impl FnMut(Item, f64),
    ) {
        self.there.set(state, to);
        if self.there.over_with(1.0, &leaving.least) > leaving.enough {
            return;
        }
        for (item, left, out) in &leaving.items {
            let over = left.max(self.there.over_with(1.0, out));
            if over <= leaving.enough {
                found(*item, over);
            }
        }
    }

    /// Calls `found` for each pair of items that fits, with the leaving item, the returning item and the larger overhang of
    /// the two members afterwards. If it returns false, the leaving item is skipped.
    pub fn pairs(
        &mut self,
        state: &State<'_>,
        leaving: &Leaving<'_>,
        to: u32,
        theirs: &ItemTable,
        mut found: impl FnMut(Item, Item, f64) -> bool,
    ) {
        let (here, enough) = (&leaving.here, leaving.enough);
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
        for (item, _, out) in &leaving.items {
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

    /// Whether no returning demand between `least` and `most` fits the leaving demand `out`.
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
