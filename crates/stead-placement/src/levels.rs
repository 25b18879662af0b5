//! Balance of members: the even share of each, the imbalance, and a lower bound on the imbalance of any placement.
//!
//! Owns the mathematics of docs/placement.md, in integers, so that the checker can compute the same numbers. Does not
//! move anything.

use crate::problem::{Problem, Resource, UNCOUNTED};

/// A million: levels are in millionths of the usable amount.
pub const PPM: u128 = 1_000_000;
/// How many of the largest instances the bound considers; any number gives a valid bound, more rarely improve it.
const LARGEST: usize = 16;
/// Up to how many instances per member the pigeonhole bound considers.
const PIGEONS: usize = 8;
/// How many classes the class bound considers.
const CLASSES: usize = 64;

/// A set of members among which load can be moved; no load can enter or leave it.
#[derive(Debug)]
pub struct Domain {
    /// Its members, all of which take part.
    pub members: Vec<u32>,
    /// The weighted mean utilisation of the most used resource, in millionths; 0 without load.
    pub scale_ppm: u64,
}

/// The even shares of all members.
#[derive(Debug)]
pub struct Levels {
    /// The domains, ordered by their first member.
    pub domains: Vec<Domain>,
    /// Each member's domain; none if it does not take part.
    pub domain: Vec<Option<u32>>,
    /// Each member's even share of each resource, in millionths.
    pub even_ppm: Vec<u64>,
    /// Load of each resource that will be on each member after any plan.
    fixed: Vec<u64>,
    /// The part of `fixed` that is on the member already and that no plan can move away.
    pub certain: Vec<u64>,
    /// The member that an instance will be on after any plan, if there is only one.
    home: Vec<Option<u32>>,
    /// Weight of each resource, in per cent.
    weight: Vec<u64>,
}

impl Levels {
    /// Computes the even shares of a problem. Carrying out a plan does not change them.
    pub fn new(p: &Problem<'_>) -> Self {
        let (n, width) = (p.members.len(), p.width());
        let home: Vec<Option<u32>> = (0..p.instances.len()).map(|i| home(p, i)).collect();
        let mut parent: Vec<u32> = (0..n as u32).collect();
        let mut joined = vec![false; p.classes.len()];
        for (i, home) in home.iter().enumerate() {
            let class = p.class[i] as usize;
            if home.is_none() && !std::mem::replace(&mut joined[class], true) {
                let mut members = p.classes[class].enter.iter();
                if let Some(first) = members.next() {
                    members.for_each(|m| union(&mut parent, first as u32, m as u32));
                }
            }
        }
        let mut domains: Vec<Domain> = Vec::new();
        let mut domain = vec![None; n];
        let mut of_root = vec![None; n];
        for m in (0..n).filter(|m| p.receives[*m]) {
            let root = find(&mut parent, m as u32) as usize;
            let d = *of_root[root].get_or_insert_with(|| {
                domains.push(Domain { members: Vec::new(), scale_ppm: 0 });
                domains.len() as u32 - 1
            });
            domains[d as usize].members.push(m as u32);
            domain[m] = Some(d);
        }
        let (mut fixed, mut certain) = (vec![0u64; n * width], vec![0u64; n * width]);
        let mut total = vec![0u128; domains.len() * width];
        for (i, home) in home.iter().enumerate() {
            let at =
                home.map_or_else(|| p.classes[p.class[i] as usize].enter.iter().next(), |m| Some(m as usize));
            let Some(at) = at else { continue };
            for (r, d) in p.demand_of(i).iter().enumerate() {
                if home.is_some() {
                    fixed[at * width + r] += d;
                    certain[at * width + r] += if p.fixed[i].is_some() { *d } else { 0 };
                }
                if let Some(domain) = domain[at] {
                    total[domain as usize * width + r] += u128::from(*d);
                }
            }
        }
        let w = p.policy.weight_percent;
        let weight: Vec<u64> = p
            .resources
            .iter()
            .map(|r| match r {
                Resource::Memory => w.memory.into(),
                Resource::Cpu => w.cpu.into(),
                Resource::Disk(_) => w.disk.into(),
            })
            .collect();
        let mut levels = Self { domains, domain, even_ppm: vec![0; n * width], fixed, certain, home, weight };
        levels.fill(p, &total);
        levels
    }

    fn fill(&mut self, p: &Problem<'_>, total: &[u128]) {
        let width = p.width();
        for d in 0..self.domains.len() {
            let members = std::mem::take(&mut self.domains[d].members);
            let mut scale = 0;
            for r in 0..width {
                // Members on which the resource is not counted have no part in the total.
                let counted: Vec<(u64, u64)> = members
                    .iter()
                    .map(|m| *m as usize * width + r)
                    .filter(|at| counts(p.usable[*at]))
                    .map(|at| (p.usable[at], self.fixed[at]))
                    .collect();
                let total = total[d * width + r];
                let room: u128 = counted.iter().map(|(usable, _)| u128::from(*usable)).sum();
                if room == 0 {
                    continue;
                }
                let level = water_level_ppm(&counted, total);
                scale = scale.max(u128::from(self.weight[r]) * (total * PPM / room) / 100);
                for m in &members {
                    let at = *m as usize * width + r;
                    if counts(p.usable[at]) {
                        self.even_ppm[at] = level.max(utilisation_ppm(self.fixed[at], p.usable[at]));
                    }
                }
            }
            self.domains[d].members = members;
            self.domains[d].scale_ppm = u64::try_from(scale).unwrap_or(u64::MAX);
        }
    }

    /// Weighted overhang of a member with the amounts `used` promised, in millionths of the usable amount: the maximum
    /// over the resources, not below 0.
    pub fn overhang_ppm(&self, p: &Problem<'_>, m: usize, used: &[u64]) -> u64 {
        let width = p.width();
        (0..width)
            .filter(|r| counts(p.usable[m * width + r]))
            .map(|r| {
                self.over(r, utilisation_ppm(used[r], p.usable[m * width + r]), self.even_ppm[m * width + r])
            })
            .max()
            .unwrap_or(0)
    }

    /// The imbalance of a member with the amounts `used` promised; a million if it does not take part.
    pub fn imbalance_ppm(&self, p: &Problem<'_>, m: usize, used: &[u64]) -> u64 {
        self.domain[m].map_or(PPM as u64, |d| self.in_scale(d as usize, self.overhang_ppm(p, m, used)))
    }

    /// The weight of a resource, as a factor.
    pub fn weight(&self, r: usize) -> f64 {
        self.weight[r] as f64 / 100.0
    }

    fn over(&self, r: usize, level_ppm: u64, even_ppm: u64) -> u64 {
        let over = u128::from(self.weight[r]) * u128::from(level_ppm.saturating_sub(even_ppm)) / 100;
        u64::try_from(over).unwrap_or(u64::MAX)
    }

    fn in_scale(&self, d: usize, overhang_ppm: u64) -> u64 {
        match self.domains[d].scale_ppm {
            0 => PPM as u64,
            scale => {
                u64::try_from(PPM + u128::from(overhang_ppm) * PPM / u128::from(scale)).unwrap_or(u64::MAX)
            }
        }
    }

    /// A lower bound on the imbalance of every reachable placement.
    pub fn bound_ppm(&self, p: &Problem<'_>) -> u64 {
        let movable: Vec<usize> = (0..p.instances.len())
            .filter(|i| {
                self.home[*i].is_none() && self.domain[p.start[*i] as usize].is_some() && !p.must_leave[*i]
            })
            .collect();
        (0..self.domains.len())
            .map(|d| {
                let inside: Vec<usize> = movable
                    .iter()
                    .copied()
                    .filter(|i| self.domain[p.start[*i] as usize] == Some(d as u32))
                    .collect();
                let over =
                    self.large(p, &inside).max(self.pigeons(p, d, &inside)).max(self.classes(p, &inside));
                self.in_scale(d, over)
            })
            .max()
            .unwrap_or(PPM as u64)
    }

    /// Bound from large instances: each has to be on some member.
    fn large(&self, p: &Problem<'_>, inside: &[usize]) -> u64 {
        let width = p.width();
        let mut most = 0;
        for r in 0..width {
            let mut by_size: Vec<usize> = inside.to_vec();
            let keep = LARGEST.min(by_size.len());
            if keep == 0 {
                continue;
            }
            by_size.select_nth_unstable_by_key(keep - 1, |i| {
                std::cmp::Reverse((p.demand_of(*i)[r], usize::MAX - i))
            });
            for i in &by_size[..keep] {
                let least = p.classes[p.class[*i] as usize]
                    .enter
                    .iter()
                    .chain([p.start[*i] as usize])
                    .map(|m| {
                        let used: Vec<u64> =
                            (0..width).map(|r| self.certain[m * width + r] + p.demand_of(*i)[r]).collect();
                        self.overhang_ppm(p, m, &used)
                    })
                    .min();
                most = most.max(least.unwrap_or(0));
            }
        }
        most
    }

    /// Bound from the number of instances: if there are more instances than members, some share a member.
    fn pigeons(&self, p: &Problem<'_>, d: usize, inside: &[usize]) -> u64 {
        let (width, members) = (p.width(), &self.domains[d].members);
        let mut most = 0;
        for r in 0..width {
            let at = |m: &u32| *m as usize * width + r;
            if members.iter().any(|m| p.is_shared(*m as usize, r)) {
                continue;
            }
            let holes: Vec<&u32> = members.iter().filter(|m| counts(p.usable[at(m)])).collect();
            let largest = holes.iter().map(|m| p.usable[at(m)]).max().unwrap_or(0);
            let even = holes.iter().map(|m| self.even_ppm[at(m)]).max().unwrap_or(0);
            let mut sizes: Vec<u64> = inside.iter().map(|i| p.demand_of(*i)[r]).filter(|s| *s > 0).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            for each in 1..=PIGEONS {
                // The first `count` instances are one too many for `each` per member, so `each + 1` of them share one.
                let count = each * holes.len() + 1;
                if holes.is_empty() || sizes.len() < count {
                    break;
                }
                let together: u64 = sizes[count - 1 - each..count].iter().sum();
                most = most.max(self.over(r, utilisation_ppm(together, largest), even));
            }
        }
        most
    }

    /// Bound from classes: instances restricted to some members fill those to at least this level.
    fn classes(&self, p: &Problem<'_>, inside: &[usize]) -> u64 {
        let width = p.width();
        let mut seen: Vec<usize> = inside.iter().map(|i| p.class[*i] as usize).collect();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() < 2 {
            return 0;
        }
        let mut most = 0;
        for class in seen.iter().take(CLASSES) {
            let members = &p.classes[*class].enter;
            let within: Vec<bool> = p.classes.iter().map(|c| c.enter.within(members)).collect();
            for r in 0..width {
                if members.iter().any(|m| p.is_shared(m, r)) {
                    continue;
                }
                let slots: Vec<usize> =
                    members.iter().map(|m| m * width + r).filter(|at| counts(p.usable[*at])).collect();
                let room: u128 = slots.iter().map(|at| u128::from(p.usable[*at])).sum();
                let total: u128 = slots.iter().map(|at| u128::from(self.certain[*at])).sum::<u128>()
                    + inside
                        .iter()
                        .filter(|i| within[p.class[**i] as usize] && members.has(p.start[**i] as usize))
                        .map(|i| u128::from(p.demand_of(*i)[r]))
                        .sum::<u128>();
                let even: u128 =
                    slots.iter().map(|at| u128::from(p.usable[*at]) * u128::from(self.even_ppm[*at])).sum();
                if room == 0 {
                    continue;
                }
                // The largest overhang is at least the mean. Utilisations are rounded down, so subtract one to be safe.
                let mean = ((total * PPM).saturating_sub(even) / room).saturating_sub(1);
                most = most.max(self.over(r, u64::try_from(mean).unwrap_or(u64::MAX), 0));
            }
        }
        most
    }
}

/// Whether a resource with this usable amount is balanced.
fn counts(usable: u64) -> bool {
    usable != 0 && usable != UNCOUNTED
}

/// Utilisation in millionths, rounded down.
pub fn utilisation_ppm(used: u64, usable: u64) -> u64 {
    match usable {
        0 | UNCOUNTED => 0,
        usable => u64::try_from(u128::from(used) * PPM / u128::from(usable)).unwrap_or(u64::MAX),
    }
}

/// The member an instance is on after any plan: its own if it cannot be moved, or the only target if it must leave.
fn home(p: &Problem<'_>, i: usize) -> Option<u32> {
    if p.fixed[i].is_some() {
        return Some(p.start[i]);
    }
    let mut enter = p.classes[p.class[i] as usize].enter.iter();
    match (enter.next(), enter.next()) {
        (Some(only), None) if p.must_leave[i] => Some(only as u32),
        _ => None,
    }
}

/// The least level in millionths at which the members, as (usable, fixed), hold `total`, with none below its fixed load.
fn water_level_ppm(members: &[(u64, u64)], total: u128) -> u64 {
    let holds = |level: u64| {
        members
            .iter()
            .map(|(u, f)| (u128::from(level) * u128::from(*u)).max(u128::from(*f) * PPM))
            .sum::<u128>()
            >= total * PPM
    };
    // Doubling finds a level that holds the load; the search takes about forty steps.
    let (mut low, mut high) = (0u64, 1u64);
    while !holds(high) {
        low = high;
        high = match high.checked_mul(2) {
            Some(double) => double,
            None => return u64::MAX,
        };
    }
    if holds(low) {
        return low;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) { high = middle } else { low = middle }
    }
    high
}

fn find(parent: &mut [u32], mut m: u32) -> u32 {
    while parent[m as usize] != m {
        parent[m as usize] = parent[parent[m as usize] as usize];
        m = parent[m as usize];
    }
    m
}

fn union(parent: &mut [u32], a: u32, b: u32) {
    let (a, b) = (find(parent, a), find(parent, b));
    parent[a.max(b) as usize] = a.min(b);
}
