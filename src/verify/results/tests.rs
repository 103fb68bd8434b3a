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
    Needed { place: rotation::place_of(&object.key), modified_unix_micros: object.modified_unix_micros }
}

/// The arc on which nothing but `object` lies.
fn arc_of(object: &ObjectMeta, listed: i64, at: i64) -> Vec<VerifiedArc> {
    let place = rotation::place_of(&object.key);
    rotation::arcs_between(place, place, listed, time(at))
}

struct Bed {
    objects: Vec<ObjectMeta>,
    proofs: Vec<BackupProof>,
}

impl Bed {
    fn new() -> Bed {
        let objects = vec![object("a", 1), object("b", 2), object("c", 3)];
        let proof = |name, needs: &[usize]| BackupProof {
            id: id(name),
            needed: Some(needs.iter().map(|at| needed(&objects[*at])).collect()),
        };
        let proofs = vec![proof("20261101T000000Z", &[0, 1]), proof("20261102T000000Z", &[1, 2])];
        Bed { objects, proofs }
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
    assert_eq!(told(&next)[0], (Verified, References, 30), "something of it was not listed");
}

#[test]
fn damage_stays_until_it_was_read_and_found_whole() {
    let bed = Bed::new();
    let hurt = [bed.hurt(1, 1)];
    let found = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &hurt);
    assert_eq!(told(&found), [(Verified, Content, 10), (Damaged, Content, 10)]);
    assert!(found.backups[1].reason.contains("the seal is broken"));
    assert_eq!(to_read_again(Some(&found)), [bed.objects[1].key.clone()]);
    // To look at references does not see it, and does not forget it.
    let shallow = bed.run(Some(&found), &[], References, 20, &[]);
    assert_eq!(told(&shallow), [(Verified, Content, 10), (Damaged, Content, 10)]);
    assert_eq!((shallow.damage_count, shallow.damage[0].found_at), (1, time(10)));
    let again = bed.run(Some(&shallow), &[], Content, 30, &hurt);
    assert_eq!((told(&again)[1], again.damage[0].found_at), ((Damaged, Content, 30), time(10)));
    let healed = bed.run(Some(&again), &[], Content, 40, &[]);
    assert_eq!((told(&healed)[1], healed.damage_count), ((Verified, Content, 10), 0));
}

#[test]
fn when_nothing_can_be_read_nothing_is_verified() {
    let bed = Bed::new();
    let whole = bed.run(None, &rotation::whole(9, time(10)), Content, 10, &[]);
    let gone = Finding { backups: Vec::new(), ..bed.hurt(0, 0) };
    let run = Run {
        cluster: &cluster(),
        root: 0,
        started_at: time(20),
        finished_at: time(21),
        depth: Content,
        scope: VerifyScope::Whole,
        objects: 0,
        bytes: 0,
        arcs: &[],
        listed: &bed.objects,
        findings: &[gone],
        backups: None,
    };
    assert_eq!(told(&next(Some(&whole), &run)), [(Damaged, Content, 20), (Damaged, Content, 20)]);
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
