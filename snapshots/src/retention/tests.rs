//! Retention over simulated years: clocks that step, summer time on a clock that should be UTC, missed runs, holds, targets that lag, sets that lose members.

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const BEGIN: u64 = 1_767_225_600;

fn policy() -> Policy {
    Policy::parse(["last:3", "hourly:24", "daily:7", "weekly:4", "monthly:6", "yearly:2"], HOUR).unwrap()
}

/// A random source that replays from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

fn item(serial: u64, claimed: u64) -> Item {
    Item {
        name: SetName::new(claimed, 2).unwrap(),
        members: vec![Some((serial, serial * 2)), Some((serial, serial * 2 + 1))],
        contents: vec![Some(Content::Metadata), Some(Content::Blocks)],
        is_whole: true,
    }
}

/// Sets at these claimed times, in this order.
fn items(claimed: &[u64]) -> Vec<Item> {
    claimed.iter().enumerate().map(|(at, claimed)| item(at as u64 + 1, *claimed)).collect()
}

fn fates(items: &[Item], policy: &Policy, now: u64) -> Vec<Fate> {
    judge(items, policy, &[], &[], now, Judgement::default()).into_iter().map(|verdict| verdict.fate).collect()
}

fn survivors(items: &[Item], verdicts: &[Verdict]) -> Vec<Item> {
    let left = |(item, verdict): (&Item, &Verdict)| match verdict.fate {
        Fate::Keep => Some(item.clone()),
        Fate::Destroy => None,
        Fate::Thin(stays) => {
            let mut item = Item { is_whole: false, ..item.clone() };
            let goes = |content: &Option<Content>| content.is_none_or(|content| !stays.has(content));
            item.members
                .iter_mut()
                .zip(&item.contents)
                .filter(|(_, content)| goes(content))
                .for_each(|(member, _)| *member = None);
            Some(item)
        }
    };
    items.iter().zip(verdicts).filter_map(left).collect()
}

#[test]
fn the_grid_keeps_the_youngest_of_each_period_that_has_one() {
    let policy = Policy::parse(["daily:2"], 0).unwrap();
    let items = items(&[BEGIN, BEGIN + HOUR, BEGIN + 40 * DAY, BEGIN + 40 * DAY + HOUR]);
    assert_eq!(
        fates(&items, &policy, BEGIN + 400 * DAY),
        [Fate::Destroy, Fate::Keep, Fate::Destroy, Fate::Keep],
        "forty days of nothing make nothing old"
    );
}

#[test]
fn a_set_from_the_future_is_kept_and_takes_nobody_s_place() {
    let policy = Policy::parse(["daily:1"], 0).unwrap();
    let items = items(&[BEGIN, BEGIN + 70 * 365 * DAY, BEGIN + DAY, BEGIN + DAY + HOUR]);
    let verdicts = judge(&items, &policy, &[], &[], BEGIN + DAY + 2 * HOUR, Judgement::default());
    assert_eq!(
        verdicts.iter().map(|v| v.fate).collect::<Vec<_>>(),
        [Fate::Destroy, Fate::Keep, Fate::Destroy, Fate::Keep]
    );
    assert!(matches!(verdicts[1].reasons[..], [Reason::Future(_)]), "{:?}", verdicts[1]);
}

#[test]
fn times_that_contradict_the_order_are_in_doubt_until_the_operator_trusts_them() {
    let policy = Policy::parse(["daily:1"], 0).unwrap();
    // The clock was a week ahead for two sets.
    let items = items(&[
        BEGIN,
        BEGIN + DAY,
        BEGIN + 9 * DAY,
        BEGIN + 10 * DAY,
        BEGIN + 4 * DAY,
        BEGIN + 5 * DAY,
        BEGIN + 11 * DAY,
    ]);
    let verdicts = judge(&items, &policy, &[], &[], BEGIN + 12 * DAY, Judgement::default());
    let doubted: Vec<bool> = verdicts.iter().map(|v| v.reasons == [Reason::Skewed]).collect();
    assert_eq!(doubted, [false, false, true, true, true, true, false]);
    let trusting = Judgement { trust_times: true, ..Judgement::default() };
    let verdicts = judge(&items, &policy, &[], &[], BEGIN + 12 * DAY, trusting);
    assert_eq!(verdicts.iter().filter(|v| v.fate == Fate::Keep).count(), 1);
}

#[test]
fn a_clock_that_was_never_set_is_not_believed_and_puts_nobody_else_in_doubt() {
    let items = items(&[BEGIN, BEGIN + DAY, 1000, BEGIN + 2 * DAY]);
    let policy = Policy::parse(["daily:9"], 0).unwrap();
    let verdicts = judge(&items, &policy, &[], &[], BEGIN + 3 * DAY, Judgement::default());
    assert_eq!(verdicts[2].reasons, [Reason::Undated]);
    assert!(
        verdicts.iter().enumerate().all(|(at, v)| at == 2 || matches!(v.reasons.last(), Some(Reason::Rung(..)))),
        "{verdicts:?}"
    );
}

#[test]
fn a_set_that_is_not_whole_stays_until_the_operator_lets_it_go_and_fills_no_place() {
    let mut items = items(&[BEGIN, BEGIN + DAY, BEGIN + 2 * DAY]);
    items[2].members[1] = None;
    items[2].is_whole = false;
    let policy = Policy::parse(["last:1"], 0).unwrap();
    assert_eq!(fates(&items, &policy, BEGIN + 3 * DAY), [Fate::Destroy, Fate::Keep, Fate::Keep]);
    let go = Judgement { incomplete_go: true, ..Judgement::default() };
    let verdicts = judge(&items, &policy, &[], &[], BEGIN + 3 * DAY, go);
    assert_eq!(verdicts.iter().map(|v| v.fate).collect::<Vec<_>>(), [Fate::Destroy, Fate::Keep, Fate::Destroy]);
}

fn longer(keep: &[&str], metadata: &[&str]) -> Policy {
    let mut policy = Policy::parse(keep.iter().copied(), 0).unwrap();
    policy.longer.insert(Content::Metadata, Policy::parse(metadata.iter().copied(), 0).unwrap());
    policy
}

#[test]
fn a_class_that_is_kept_for_longer_thins_sets_that_nothing_else_keeps() {
    let policy = longer(&["last:1"], &["daily:3"]);
    let all = items(&[BEGIN, BEGIN + DAY, BEGIN + 2 * DAY, BEGIN + 2 * DAY + HOUR, BEGIN + 3 * DAY]);
    let verdicts = judge(&all, &policy, &[], &[], BEGIN + 9 * DAY, Judgement::default());
    let metadata = Fate::Thin(Contents::default().and(Content::Metadata));
    let fates: Vec<Fate> = verdicts.iter().map(|v| v.fate).collect();
    assert_eq!(fates, [Fate::Destroy, metadata, Fate::Destroy, metadata, Fate::Keep]);
    assert_eq!(verdicts[1].reasons[0].to_string(), "metadata: daily 3 of 3");
    let left = survivors(&all, &verdicts);
    assert!(left[0].members[0].is_some() && left[0].members[1].is_none() && !left[0].is_whole);
    let verdicts = judge(&left, &policy, &[], &[], BEGIN + 9 * DAY, Judgement::default());
    assert!(verdicts.iter().all(|v| v.fate == Fate::Keep), "{verdicts:?}");
    // Days later its time is over; without the class's policy it is a broken set that somebody has to look at.
    let fate = |policy: &Policy, more: u64| {
        let more: Vec<Item> =
            left.iter().cloned().chain((0..more).map(|day| item(100 + day, BEGIN + (20 + day) * DAY))).collect();
        judge(&more, policy, &[], &[], BEGIN + 99 * DAY, Judgement::default())[0].clone()
    };
    assert_eq!(fate(&policy, 5).fate, Fate::Destroy);
    assert_eq!(fate(&Policy::parse(["last:1"], 0).unwrap(), 5).reasons, [Reason::Incomplete(1, 2)]);
}

#[test]
fn a_class_never_takes_from_a_set_that_is_kept_and_a_broken_set_is_not_taken_for_a_thinned_one() {
    let all = items(&[BEGIN, BEGIN + DAY]);
    let verdicts = judge(&all, &longer(&["daily:9"], &[]), &[], &[], BEGIN + 9 * DAY, Judgement::default());
    assert!(verdicts.iter().all(|v| v.fate == Fate::Keep));
    let mut broken = all.clone();
    broken[0].members[0] = None;
    broken[0].is_whole = false;
    let verdicts = judge(&broken, &longer(&["last:1"], &["daily:9"]), &[], &[], BEGIN + 9 * DAY, Judgement::default());
    assert_eq!(verdicts[0].reasons, [Reason::Incomplete(1, 2)], "blocks without pins are nothing that a policy leaves");
}

#[test]
fn a_policy_that_keeps_nothing_keeps_the_youngest_whole_set() {
    let policy = Policy::parse([], 0).unwrap();
    assert_eq!(fates(&items(&[BEGIN, BEGIN + 1]), &policy, BEGIN + DAY), [Fate::Destroy, Fate::Keep]);
    assert!(judge(&[], &policy, &[], &[], BEGIN, Judgement::default()).is_empty());
}

#[test]
fn each_dataset_keeps_its_own_last_common_base() {
    let items = items(&[BEGIN, BEGIN + DAY, BEGIN + 2 * DAY, BEGIN + 3 * DAY]);
    let policy = Policy::parse([], 0).unwrap();
    // The target has the first dataset's second snapshot and the second dataset's first.
    let edge = Edge {
        name: "vault".into(),
        has: [items[0].members[0].unwrap().1, items[1].members[0].unwrap().1, items[0].members[1].unwrap().1].into(),
        lineage: String::new(),
    };
    let verdicts = judge(&items, &policy, &[], &[edge], BEGIN + 9 * DAY, Judgement::default());
    assert_eq!(
        verdicts.iter().map(|v| v.fate).collect::<Vec<_>>(),
        [Fate::Keep, Fate::Keep, Fate::Destroy, Fate::Keep]
    );
    assert_eq!(verdicts[1].reasons, [Reason::Base("vault".into())]);
}

/// A host that takes sets every hour or so and prunes, for years, and everything that goes wrong with it.
struct Host {
    dice: Dice,
    time: u64,
    skew: i64,
    serial: u64,
    items: Vec<Item>,
    guards: Vec<Guard>,
    edges: Vec<Edge>,
    is_skewed: bool,
}

impl Host {
    fn new(seed: u64, is_skewed: bool) -> Host {
        let edges = ["vault", "far"]
            .map(|name| Edge { name: name.into(), has: BTreeSet::new(), lineage: String::new() })
            .into();
        Host {
            dice: Dice(seed),
            time: BEGIN,
            skew: 0,
            serial: 0,
            items: Vec::new(),
            guards: Vec::new(),
            edges,
            is_skewed,
        }
    }

    fn clock(&self) -> u64 {
        self.time.saturating_add_signed(self.skew)
    }

    fn hour(&mut self) {
        // Now and then the host is off, for hours or for months.
        self.time += match self.dice.roll(2000) {
            0 => self.dice.roll(90) * DAY,
            1..=20 => self.dice.roll(48) * HOUR,
            _ => HOUR + self.dice.roll(120),
        };
        if self.is_skewed {
            self.skew += match self.dice.roll(4000) {
                0 => self.dice.roll(40_000) as i64 * DAY as i64,
                1 => -(self.dice.roll(20_000) as i64 * DAY as i64),
                2..=5 => HOUR as i64,
                6..=9 => -(HOUR as i64),
                10..=60 => self.dice.roll(1200) as i64 - 600,
                61..=90 => -self.skew,
                _ => 0,
            };
        }
        self.serial += 1;
        let mut taken = item(self.serial, self.clock().min(200_000_000_000));
        if self.dice.roll(300) == 0 {
            taken.members[1] = None;
            taken.is_whole = false;
        }
        self.items.push(taken);
        if self.dice.roll(50) == 0 {
            let at = self.dice.roll(self.items.len() as u64) as usize;
            self.guards.push(Guard { set: self.items[at].name.clone(), by: format!("hold {}", self.serial) });
        }
        if self.dice.roll(40) == 0 && !self.guards.is_empty() {
            let at = self.dice.roll(self.guards.len() as u64) as usize;
            self.guards.remove(at);
        }
        for at in 0..self.edges.len() {
            // A target that is sent the youngest, or only a part of it, or nothing for weeks.
            if self.dice.roll(if at == 0 { 6 } else { 600 }) == 0 {
                let members = self.items.last().unwrap().members.clone();
                let parts = 1 + self.dice.roll(2) as usize;
                self.edges[at].has.extend(members.into_iter().flatten().take(parts).map(|(_, guid)| guid));
            }
        }
    }

    /// The youngest common snapshot of each edge on each dataset, looked for in another way than `judge` does.
    fn bases(&self, of: &[Item]) -> Vec<Option<u64>> {
        let mut bases = Vec::new();
        for edge in &self.edges {
            for dataset in 0..2 {
                let mut base = None;
                for item in of {
                    if let Some((_, guid)) = item.members[dataset].filter(|(_, guid)| edge.has.contains(guid)) {
                        base = Some(guid);
                    }
                }
                bases.push(base);
            }
        }
        bases
    }

    fn prune(&mut self, policy: &Policy) -> Result<(), TestCaseError> {
        let judge = |items: &[Item], guards: &[Guard]| {
            super::judge(items, policy, guards, &self.edges, self.clock(), Judgement::default())
        };
        let verdicts = judge(&self.items, &self.guards);
        prop_assert_eq!(verdicts.len(), self.items.len());
        for verdict in &verdicts {
            prop_assert!(!verdict.reasons.is_empty());
            prop_assert_eq!(verdict.fate == Fate::Destroy, verdict.reasons == [Reason::Surplus], "{:?}", verdict);
            let is_of_classes = verdict.reasons.iter().all(|why| matches!(why, Reason::Longer(..)));
            prop_assert!(is_of_classes || !matches!(verdict.fate, Fate::Thin(_)), "{:?}", verdict);
            let is_guarded = self.guards.iter().any(|guard| guard.set == verdict.name);
            prop_assert!(!(is_guarded && verdict.fate != Fate::Keep), "guarded: {:?}", verdict);
        }
        let survivors = survivors(&self.items, &verdicts);
        prop_assert_eq!(self.bases(&self.items), self.bases(&survivors), "a last common base went");
        let youngest = |of: &[Item]| of.iter().rev().find(|item| item.is_whole).map(|item| item.name.clone());
        prop_assert_eq!(youngest(&self.items), youngest(&survivors));
        let again = judge(&survivors, &self.guards);
        prop_assert!(again.iter().all(|v| v.fate == Fate::Keep), "judged twice is judged once");
        let mut reversed = self.guards.clone();
        reversed.reverse();
        let kept = |verdicts: &[Verdict]| verdicts.iter().map(|v| v.fate).collect::<Vec<_>>();
        prop_assert_eq!(kept(&judge(&self.items, &reversed)), kept(&verdicts), "the order of the guards says nothing");
        self.items = survivors;
        Ok(())
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(6))]

    /// Three years: bases, guards, the youngest, idempotence, and no fate without a reason.
    #[test]
    fn years_of_clocks_that_step_holds_and_lagging_targets_lose_nothing_that_is_needed(seed: u64) {
        let mut host = Host::new(seed, true);
        let policy = policy();
        for hour in 0..3 * 365 * 24u64 {
            host.hour();
            if hour % 24 == 7 {
                host.prune(&policy)?;
            }
        }
    }

    /// The same with metadata kept for longer: whole sets are kept and destroyed as without, and each of the last months has its metadata where the clock is right.
    #[test]
    fn years_with_a_class_that_is_kept_for_longer_change_nothing_for_whole_sets(seed: u64, is_skewed: bool) {
        let (mut plain, mut thinning) = (Host::new(seed, is_skewed), Host::new(seed, is_skewed));
        let short = Policy::parse(["last:2", "daily:3"], HOUR).unwrap();
        let mut long = short.clone();
        long.longer.insert(Content::Metadata, Policy::parse(["monthly:12"], 0).unwrap());
        let whole = |host: &Host| host.items.iter().filter(|item| item.is_whole).map(|item| item.members.clone()).collect::<Vec<_>>();
        let mut months = BTreeSet::new();
        for hour in 0..2 * 365 * 24u64 {
            // Guards name sets by place, so that they would differ between the two: none here.
            for host in [&mut plain, &mut thinning] {
                host.hour();
                host.guards.clear();
            }
            if let Some(item) = thinning.items.last().filter(|item| item.is_whole) {
                months.insert(Period::Month.number(item.name.taken_unix_s()));
            }
            if hour % 24 == 7 {
                plain.prune(&short)?;
                thinning.prune(&long)?;
                prop_assert_eq!(whole(&plain), whole(&thinning));
            }
        }
        if !is_skewed {
            let kept: Vec<i64> = thinning.items.iter().filter(|item| item.members[0].is_some()).map(|item| Period::Month.number(item.name.taken_unix_s())).collect();
            for month in months.iter().rev().skip(1).take(10) {
                prop_assert!(kept.contains(month), "the metadata of month {month} is gone");
            }
            prop_assert!(thinning.items.iter().any(|item| item.is_thinned(&long)));
        }
    }

    /// Where the clock is right, what is kept is bounded by the policy, and the grid is there: a set of each of the last periods.
    #[test]
    fn with_a_right_clock_the_grid_is_whole_and_nothing_piles_up(seed: u64) {
        let mut host = Host::new(seed, false);
        let policy = policy();
        let mut days = BTreeSet::new();
        let mut months = BTreeSet::new();
        for hour in 0..3 * 365 * 24u64 {
            host.hour();
            let youngest = host.items.last().unwrap();
            if youngest.is_whole {
                days.insert(youngest.name.taken_unix_s() / DAY);
                months.insert(Period::Month.number(youngest.name.taken_unix_s()));
            }
            if hour % 24 != 7 {
                continue;
            }
            host.prune(&policy)?;
            let plain = host.items.iter().filter(|item| item.is_whole && !host.guards.iter().any(|guard| guard.set == item.name));
            let times: Vec<u64> = plain.map(|item| item.name.taken_unix_s()).collect();
            // Last 3, the grid's 43, two of the last hour, and a base for each edge and dataset.
            prop_assert!(times.len() <= 3 + 43 + 2 + 4, "{} piled up", times.len());
            let kept: Vec<u64> = host.items.iter().filter(|item| item.is_whole).map(|item| item.name.taken_unix_s()).collect();
            for day in days.iter().rev().take(7) {
                prop_assert!(kept.iter().any(|time| time / DAY == *day), "day {day} is gone");
            }
            for month in months.iter().rev().take(6) {
                prop_assert!(kept.iter().any(|time| Period::Month.number(*time) == *month), "month {month} is gone");
            }
        }
    }

    /// Whatever the clock says when it is pruned, nothing goes that would stay under the right one.
    #[test]
    fn no_clock_at_the_time_of_pruning_destroys_what_the_grid_keeps(gaps in prop::collection::vec(60u64..40 * DAY, 1..200), now: u64) {
        let mut time = BEGIN;
        let claimed: Vec<u64> = gaps.iter().map(|gap| { time += gap; time }).collect();
        let items = items(&claimed);
        let eager = Policy { min_age_s: 0, ..policy() };
        let right = fates(&items, &eager, time);
        let wrong = fates(&items, &policy(), now % 100_000_000_000);
        for (right, wrong) in right.iter().zip(wrong) {
            prop_assert!(!(*right == Fate::Keep && wrong == Fate::Destroy));
        }
    }

    /// Any sets at all, in any order of times: the promises of the one call.
    #[test]
    fn any_history_is_judged_once_and_for_all(claimed in prop::collection::vec(0u64..4_000_000_000, 0..60), now in 0u64..5_000_000_000, broken: u64, trust: bool, thin: bool) {
        let mut items = items(&claimed);
        let policy = || {
            let mut policy = policy();
            if thin {
                policy.longer.insert(Content::Metadata, Policy::parse(["last:5", "yearly:50"], 0).unwrap());
            }
            policy
        };
        for (at, item) in items.iter_mut().enumerate() {
            if broken >> (at % 64) & 1 == 1 && at % 3 == 0 {
                item.members[at % 2] = None;
                item.is_whole = false;
            }
        }
        for incomplete_go in [false, true] {
            let by = Judgement { incomplete_go, trust_times: trust };
            let verdicts = judge(&items, &policy(), &[], &[], now, by);
            let survivors = survivors(&items, &verdicts);
            prop_assert!(judge(&survivors, &policy(), &[], &[], now, by).iter().all(|v| v.fate == Fate::Keep));
            prop_assert_eq!(survivors.iter().any(|item| item.is_whole), items.iter().any(|item| item.is_whole));
        }
    }
}
