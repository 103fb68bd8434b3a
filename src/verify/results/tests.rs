//! What runs leave for each other.

use super::*;

fn time(at: i64) -> Timestamp {
    Timestamp::from_micros(at)
}

fn id(text: &str) -> BackupId {
    text.parse().unwrap()
}

fn cluster() -> ClusterName {
    "shop".parse().unwrap()
}

fn object(name: &str, modified: i64) -> ObjectMeta {
    let key = ObjectKey::new(format!("clusters/shop/segments/{name}")).unwrap();
    ObjectMeta { key, len: 100, modified_unix_micros: modified }
}

fn needed(object: &ObjectMeta) -> Needed {
    let modified_unix_micros = object.modified_unix_micros;
    Needed { place: rotation::place_of(&object.key), modified_unix_micros, now: false }
}

/// The arc on which nothing but `object` lies.
fn arc_of(object: &ObjectMeta, listed: i64, at: i64) -> Vec<VerifiedArc> {
    let place = rotation::place_of(&object.key);
    rotation::arcs_between(place, place, listed, time(at))
}

struct Bed {
    objects: Vec<ObjectMeta>,
    proofs: Vec<BackupProof>,
    healed: BTreeSet<u64>,
    unseen: BTreeSet<u64>,
}

impl Bed {
    fn new() -> Bed {
        let objects = vec![object("a", 1), object("b", 2), object("c", 3)];
        let proof = |name, needs: &[usize]| BackupProof {
            id: id(name),
            needed: Some(needs.iter().map(|at| needed(&objects[*at])).collect()),
        };
        let proofs = vec![proof("20261101T000000Z", &[0, 1]), proof("20261102T000000Z", &[1, 2])];
        Bed { objects, proofs, healed: BTreeSet::new(), unseen: BTreeSet::new() }
    }

    /// The next run looks at these again, and proves them unless it finds something.
    fn healing(&mut self, objects: &[usize]) -> &Bed {
        self.healed = objects.iter().map(|at| rotation::place_of(&self.objects[*at].key)).collect();
        self
    }

    fn run(
        &self,
        before: Option<&Verification>,
        arcs: &[VerifiedArc],
        depth: VerifyDepth,
        at: i64,
        findings: &[Finding],
    ) -> Verification {
        next(
            before,
            &Run {
                cluster: &cluster(),
                root: 1,
                started_at: time(at),
                finished_at: time(at + 1),
                depth,
                scope: VerifyScope::Sample,
                objects: 1,
                bytes: 100,
                arcs,
                healed: &self.healed,
                unseen: &self.unseen,
                listed: &self.objects,
                findings,
                backups: Some(&self.proofs),
            },
        )
    }

    fn hurt(&self, object: usize, backup: usize) -> Finding {
        Finding {
            key: self.objects[object].key.to_string(),
            reason: "frame 3: the seal is broken".into(),
            cost: "a backup".into(),
            backups: vec![self.proofs[backup].id.clone()],
        }
    }
}

fn told(result: &Verification) -> Vec<(VerifyOutcome, VerifyDepth, i64)> {
    result.backups.iter().map(|known| (known.outcome, known.depth, known.at.micros())).collect()
}

use VerifyDepth::{Content, References};
use VerifyOutcome::{Damaged, Verified};

#[test]
fn a_backup_is_verified_once_all_that_it_needs_was_read_and_since_the_first_of_it() {
    let bed = Bed::new();
    let first = bed.run(None, &arc_of(&bed.objects[0], 9, 10), Content, 10, &[]);
    assert_eq!(told(&first), [(Verified, References, 10), (Verified, References, 10)]);
    assert_eq!((first.bytes_covered, first.bytes_total), (100, 300));
    let second = bed.run(Some(&first), &arc_of(&bed.objects[1], 9, 20), Content, 20, &[]);
    assert_eq!(told(&second), [(Verified, Content, 10), (Verified, References, 20)]);
    let third = bed.run(Some(&second), &arc_of(&bed.objects[2], 9, 30), Content, 30, &[]);
    assert_eq!(told(&third), [(Verified, Content, 10), (Verified, Content, 20)]);
    let whole = bed.run(Some(&third), &rotation::whole(9, time(40)), Content, 40, &[]);
    assert_eq!(told(&whole), [(Verified, Content, 40), (Verified, Content, 40)]);
    assert_eq!((whole.arcs.len(), whole.bytes_covered), (1, 300));
}

#[test]
fn an_object_that_was_not_there_yet_is_not_proved() {
    let mut bed = Bed::new();
    let whole = bed.run(None, &rotation::whole(3, time(10)), Content, 10, &[]);
    assert_eq!(told(&whole), [(Verified, Content, 10), (Verified, Content, 10)]);
    bed.objects[2].modified_unix_micros = 4;
    bed.proofs[1].needed = Some(vec![needed(&bed.objects[1]), needed(&bed.objects[2])]);
    let next = bed.run(Some(&whole), &[], References, 20, &[]);
    assert_eq!(told(&next), [(Verified, Content, 10), (Verified, References, 20)]);
    bed.proofs[0].needed = None;
    let next = bed.run(Some(&whole), &[], References, 30, &[]);
    assert_eq!(
        told(&next)[0],
        (Verified, Content, 10),
        "something of it was not listed: nothing new is said"
    );
    let first = bed.run(None, &[], References, 30, &[]);
    assert_eq!(told(&first), [(Verified, References, 30)], "nor anything at all, the first time");
}

#[test]
fn damage_stays_until_it_was_looked_at_again_and_found_whole() {
    let mut bed = Bed::new();
    let hurt = [bed.hurt(1, 1)];
    let found = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &hurt);
    // The first needs the object too, and what is damaged of it does not hurt it.
    assert_eq!(told(&found), [(Verified, References, 10), (Damaged, Content, 10)]);
    assert!(found.backups[1].reason.contains("the seal is broken"));
    assert_eq!(found.unproved, [rotation::place_of(&bed.objects[1].key)]);
    // To look at references does not see it, and does not forget it.
    let shallow = bed.run(Some(&found), &[], References, 20, &[]);
    assert_eq!(told(&shallow), [(Verified, References, 20), (Damaged, Content, 10)]);
    assert_eq!((shallow.damage_count, shallow.damage[0].found_at), (1, time(10)));
    // Nor does it help to look elsewhere, even over all of the ring, when this object was not looked at as deep as before.
    for arcs in [Vec::new(), arc_of(&bed.objects[0], 9, 25), rotation::whole(9, time(25))] {
        let elsewhere = bed.run(Some(&shallow), &arcs, Content, 25, &[]);
        assert_eq!(told(&elsewhere), [(Verified, References, 25), (Damaged, Content, 10)]);
        assert_eq!((elsewhere.damage_count, elsewhere.damage.len()), (1, 1));
    }
    bed.healing(&[1]);
    let again = bed.run(Some(&shallow), &[], Content, 30, &hurt);
    assert_eq!((told(&again)[1], again.damage[0].found_at), ((Damaged, Content, 30), time(10)));
    let healed = bed.run(Some(&again), &[], Content, 40, &[]);
    assert_eq!(told(&healed), [(Verified, Content, 10), (Verified, Content, 10)]);
    assert_eq!((healed.damage_count, healed.unproved.len()), (0, 0));
}

#[test]
fn a_shallow_finding_does_not_make_a_deep_one_shallow() {
    let bed = Bed::new();
    let deep = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[bed.hurt(1, 1)]);
    let shallow = bed.run(Some(&deep), &[], References, 20, &[bed.hurt(2, 1)]);
    assert_eq!(told(&shallow)[1], (Damaged, Content, 20));
    let shallow = bed.run(Some(&shallow), &[], References, 30, &[]);
    assert_eq!(told(&shallow)[1], (Damaged, Content, 20), "the first one was not read again");
}

#[test]
fn what_another_run_found_meanwhile_is_not_forgotten() {
    let mut bed = Bed::new();
    let whole = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[]);
    // Two samples begin. One finds damage and stores that; the other looked at that object before, or never, and stores after it.
    let theirs = bed.run(Some(&whole), &arc_of(&bed.objects[1], 9, 21), Content, 21, &[bed.hurt(1, 1)]);
    for arcs in [arc_of(&bed.objects[0], 9, 20), arc_of(&bed.objects[1], 9, 20)] {
        let ours = bed.run(Some(&theirs), &arcs, Content, 20, &[]);
        assert_eq!(told(&ours)[1], (Damaged, Content, 21));
        assert_eq!((ours.damage_count, ours.damage.len(), ours.unproved.len()), (1, 1, 1));
    }
    // What was known when it began, and it proved, is healed.
    bed.healing(&[1]);
    let ours = bed.run(Some(&theirs), &arc_of(&bed.objects[1], 9, 30), Content, 30, &[]);
    assert_eq!((told(&ours)[1].0, ours.damage_count), (Verified, 0));
}

#[test]
fn what_could_not_be_looked_at_is_not_proved_and_no_damage() {
    let mut bed = Bed::new();
    bed.unseen.insert(rotation::place_of(&bed.objects[2].key));
    let found = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[]);
    assert_eq!(told(&found), [(Verified, Content, 10), (Verified, References, 10)]);
    assert_eq!((found.damage_count, found.unproved.len()), (0, 1));
    bed.unseen.clear();
    let next = bed.healing(&[2]).run(Some(&found), &[], Content, 20, &[]);
    assert_eq!(told(&next)[1], (Verified, Content, 10));
}

#[test]
fn of_more_damage_than_has_a_name_the_places_are_kept() {
    let mut bed = Bed::new();
    let finding = |at: usize| Finding { key: format!("clusters/shop/segments/{at:03}x"), ..bed.hurt(0, 0) };
    let mut findings: Vec<Finding> = (0..DAMAGE_KEPT_MAX).map(finding).collect();
    findings.push(Finding { backups: vec![bed.proofs[1].id.clone()], ..bed.hurt(2, 1) });
    let first = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &findings);
    assert!(first.damage.iter().all(|known| known.key != bed.objects[2].key.as_str()));
    assert_eq!((first.unproved.len(), first.damage_count), (DAMAGE_KEPT_MAX + 1, DAMAGE_KEPT_MAX as u64 + 1));
    // Those that have a name are mended; nobody looked at the other one again.
    bed.healed = first.damage.iter().filter_map(|known| place_of(&known.key)).collect();
    let second = bed.run(Some(&first), &arc_of(&bed.objects[0], 9, 20), Content, 20, &[]);
    assert_eq!(told(&second)[1], (Damaged, Content, 10));
    assert_eq!((second.damage.len(), second.damage_count), (0, 1));
    bed.healing(&[2]);
    let third = bed.run(Some(&second), &arc_of(&bed.objects[2], 9, 30), Content, 30, &[]);
    assert_eq!((told(&third)[1], third.damage_count), ((Verified, Content, 10), 0));
}

#[test]
fn with_more_unproved_than_can_be_kept_nothing_is_proved() {
    let mut bed = Bed::new();
    bed.unseen = (0..=UNPROVED_MAX as u64).collect();
    let result = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[]);
    assert_eq!((result.unproved.len(), result.arcs.len()), (UNPROVED_MAX, 0));
    assert_eq!(told(&result), [(Verified, References, 10), (Verified, References, 10)]);
}

#[test]
fn what_is_listed_late_is_proved_now_and_not_later() {
    let mut bed = Bed::new();
    // The list began at 3: what was stored at 4 was on it, or was not.
    bed.objects[2].modified_unix_micros = 4;
    bed.proofs[1].needed = Some(vec![needed(&bed.objects[1]), needed(&bed.objects[2])]);
    let whole = bed.run(None, &rotation::whole(3, time(10)), Content, 10, &[]);
    assert_eq!(told(&whole)[1], (Verified, Content, 10), "it was listed and read");
    assert_eq!((whole.bytes_covered, whole.arcs[0].listed_unix_micros), (300, 3));
    let next = bed.run(Some(&whole), &[], References, 20, &[]);
    assert_eq!(told(&next), [(Verified, Content, 10), (Verified, References, 20)]);
    // What is decoded by every run needs no arc.
    bed.proofs[1].needed.as_mut().unwrap()[1].now = true;
    let next = bed.run(Some(&whole), &arc_of(&bed.objects[0], 9, 30), Content, 30, &[]);
    assert_eq!(told(&next)[1], (Verified, Content, 10));
}

#[test]
fn a_clock_that_was_ahead_does_not_make_its_arcs_the_newest_for_good() {
    let bed = Bed::new();
    let ahead = bed.run(None, &rotation::whole(9, time(1_000_000)), Content, 1_000_000, &[]);
    let (mut before, mut starts) = (ahead, BTreeSet::new());
    for at in 20..60 {
        // As the driver chooses: from the part that was read longest ago on, an eighth of the ring.
        let first = rotation::next_start(&rotation::not_after(&before.arcs, time(at - 1)));
        starts.insert(first);
        let arcs = rotation::arcs_between(first, first.wrapping_add(u64::MAX / 8), 9, time(at));
        before = bed.run(Some(&before), &arcs, Content, at, &[]);
        assert!(before.arcs.iter().all(|arc| arc.at <= time(at)), "{:?}", before.arcs);
    }
    assert!(starts.len() >= 8, "the same part was read again and again: {starts:?}");
    assert!(before.arcs.iter().all(|arc| arc.at > time(20)), "{:?}", before.arcs);
}

#[test]
fn when_nothing_can_be_read_nothing_is_verified_and_what_was_read_before_counts_again_later() {
    let bed = Bed::new();
    let whole = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[]);
    let gone = Finding { key: "clusters/shop/index/a".into(), backups: Vec::new(), ..bed.hurt(0, 0) };
    let run = Run {
        cluster: &cluster(),
        root: 0,
        started_at: time(20),
        finished_at: time(21),
        depth: Content,
        scope: VerifyScope::Sample,
        objects: 0,
        bytes: 0,
        arcs: &[],
        healed: &bed.healed,
        unseen: &bed.unseen,
        listed: &bed.objects,
        findings: &[gone],
        backups: None,
    };
    let broken = next(Some(&whole), &run);
    assert_eq!(told(&broken), [(Damaged, References, 20), (Damaged, References, 20)]);
    let repaired = bed.run(Some(&broken), &[], References, 30, &[]);
    assert_eq!(told(&repaired), [(Verified, Content, 10), (Verified, Content, 10)]);
}

#[test]
fn much_damage_is_counted_and_some_of_it_kept() {
    let bed = Bed::new();
    let finding = |at: usize| Finding {
        key: format!("clusters/shop/segments/{at}"),
        reason: "ä".repeat(2000),
        ..bed.hurt(0, 0)
    };
    let findings: Vec<Finding> = (0..1000).map(finding).collect();
    let result = bed.run(None, &[], Content, 10, &findings);
    assert_eq!((result.damage_count, result.damage.len()), (1000, DAMAGE_KEPT_MAX));
    assert!(result.damage.iter().all(|known| known.reason.len() <= DAMAGE_TEXT_BYTES_MAX));
}
