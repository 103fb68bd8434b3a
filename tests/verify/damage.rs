//! Every kind of object, damaged in every way: `verify` names it, with what it costs.

use crate::bed::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use walden::base::{BackupId, ObjectKey};
use walden::verify::{Finding, Report};

/// A way to be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Deleted,
    Emptied,
    Halved,
    /// The last byte is gone.
    Shortened,
    /// One more byte.
    Lengthened,
    Flipped,
    /// Another of its kind stands in its place, of this cluster where there is one.
    Replaced,
    /// It and the other cluster's stand in each other's place.
    Exchanged,
}

const HARMS: [Harm; 8] = [
    Harm::Deleted,
    Harm::Emptied,
    Harm::Halved,
    Harm::Shortened,
    Harm::Lengthened,
    Harm::Flipped,
    Harm::Replaced,
    Harm::Exchanged,
];

/// Another object of the kind of `key`: of its own cluster or, for `Exchanged`, at the same place of the other one.
fn other(key: &ObjectKey, harm: Harm) -> Option<ObjectKey> {
    let objects = &scene().objects;
    let same = |other: &&ObjectKey| kind(other) == kind(key) && *other != key;
    let shop = format!("clusters/{CLUSTER}/");
    let rest = key.as_str().strip_prefix(&shop);
    // Numbered objects have a namesake; of random names, any of the same folder.
    let abroad = || {
        let folder = format!("clusters/{OTHER}/{}/", rest?.split('/').next()?);
        let namesake = format!("clusters/{OTHER}/{}", rest?);
        let mut found = objects.keys().filter(|other| other.as_str().starts_with(&folder));
        objects.keys().find(|other| other.as_str() == namesake).or_else(|| found.next())
    };
    match harm {
        Harm::Replaced => objects.keys().find(same).or_else(abroad).cloned(),
        _ => abroad().or_else(|| objects.keys().find(same)).cloned(),
    }
}

fn damaged(key: &ObjectKey, harm: Harm) -> Option<Damaged> {
    let (store, bytes) = (Damaged::nowhere(), &scene().objects[key]);
    let len = bytes.len();
    Some(match harm {
        Harm::Deleted => store.with(key, None),
        Harm::Emptied => store.with(key, Some(Bytes::new())),
        Harm::Halved => store.with(key, Some(bytes.slice(..len / 2))),
        Harm::Shortened => store.with(key, Some(bytes.slice(..len - 1))),
        Harm::Lengthened => store.with(key, Some([bytes, &[0][..]].concat().into())),
        Harm::Flipped => store.flipped(key, len / 2, 0x10),
        Harm::Replaced => store.with(key, Some(scene().objects[&other(key, harm)?].clone())),
        Harm::Exchanged => {
            let other = other(key, harm)?;
            store.with(key, Some(scene().objects[&other].clone())).with(&other, Some(bytes.clone()))
        }
    })
}

/// What cannot be seen, since nothing else says that it was there: without the newest root, or the newest flush object of the open
/// stream, an earlier, whole state is left.
fn is_out_of_sight(key: &ObjectKey, harm: Harm) -> bool {
    let folder = &key.as_str()[..=key.as_str().rfind('/').unwrap_or(0)];
    let mut inside = scene().objects.keys().filter(|other| other.as_str().starts_with(folder));
    // The closed stream is compacted: its fence alone is there.
    let numbered = matches!(kind(key), Some("root" | "flush object" | "fence")) && inside.clone().count() > 1;
    harm == Harm::Deleted && numbered && inside.next_back() == Some(key)
}

/// Whether nothing of the cluster can be restored as long as that is so, whatever its backups are.
fn blocks_everything(report: &Report) -> bool {
    let blocks = |finding: &Finding| {
        let of_keys = finding.key == "walden" || finding.key.starts_with("keys/");
        let told =
            ["everything of cluster", "the way to the newest root", "cannot be restored: its geometry"];
        of_keys || told.iter().any(|told| finding.cost.contains(told))
    };
    report.findings.iter().any(blocks)
}

/// Every backup that is not said to be hurt is restored, byte for byte. How many were.
async fn others_restore(store: &Damaged, report: &Report, told: &str) -> usize {
    let hurt: Vec<&BackupId> = report.findings.iter().flat_map(|finding| &finding.backups).collect();
    let mut restored = 0;
    for (number, id) in backup_ids().iter().enumerate() {
        match restored_backup(store, number).await {
            Ok(files) => {
                assert!(files == scene().backups[number], "{told}: backup {id} is restored otherwise");
                restored += 1;
            }
            Err(_) if hurt.contains(&id) || blocks_everything(report) => {}
            Err(failure) => {
                panic!("{told}: backup {id} is not said to be hurt: {failure:?}: {:?}", report.findings)
            }
        }
    }
    restored
}

/// One field of the matrix.
#[derive(Debug, Default)]
struct Field {
    named: usize,
    out_of_sight: usize,
    of_no_use: usize,
    restored: usize,
    costs: BTreeSet<String>,
}

/// What a cost is without its numbers, and without that of a cluster of which nothing else is told.
fn shape(cost: &str) -> String {
    cost.split([' ', ','])
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_kind_of_object_is_missed_when_it_is_damaged_in_any_way_and_all_else_is_restored() {
    block_on(async {
        let (mut unseen, mut matrix) = (Vec::new(), BTreeMap::<(&str, String), Field>::new());
        for key in scene().objects.keys().filter(|key| kind(key).is_some()) {
            for harm in HARMS {
                let Some(store) = damaged(key, harm) else { continue };
                let told = format!("{key} {harm:?}");
                let report = verified(&store).await.unwrap_or_else(|error| panic!("{told}: {error}"));
                assert!(report.findings.iter().all(|finding| !finding.cost.is_empty()));
                let field = matrix.entry((kind(key).unwrap(), format!("{harm:?}"))).or_default();
                let named = names(&report, key);
                if is_out_of_sight(key, harm) {
                    assert!(!named, "{key} is seen to be gone: {:?}", report.findings);
                    field.out_of_sight += 1;
                } else if !named && harm == Harm::Deleted && matches!(kind(key), Some("index" | "pending")) {
                    // An older root alone leads to it, or none does yet.
                    let (files, wal) = restored(&store).await.unwrap();
                    assert!(files == scene().backups[1] && wal == scene().wal, "{key} was of use");
                    field.of_no_use += 1;
                } else if !named {
                    unseen.push(format!("{told}: {:?}", report.findings));
                } else {
                    field.named += 1;
                }
                let own = report.findings.iter().filter(|finding| finding.key == key.as_str());
                field.costs.extend(own.map(|finding| shape(&finding.cost)));
                // An earlier state may not have the newest backup.
                let tried = matches!(harm, Harm::Deleted | Harm::Flipped | Harm::Replaced | Harm::Exchanged);
                if tried && !is_out_of_sight(key, harm) {
                    field.restored += others_restore(&store, &report, &told).await;
                }
            }
        }
        println!(
            "{:<17} {:<10} {:>6} {:>13} {:>10} {:>9}  costs",
            "kind", "harm", "named", "out of sight", "of no use", "restored"
        );
        for ((kind, harm), field) in &matrix {
            let Field { named, out_of_sight, of_no_use, restored, costs } = field;
            let costs: Vec<&str> = costs.iter().map(String::as_str).collect();
            println!(
                "{kind:<17} {harm:<10} {named:>6} {out_of_sight:>13} {of_no_use:>10} {restored:>9}  {}",
                costs.join(" | ")
            );
        }
        assert!(unseen.is_empty(), "{} unseen:\n{}", unseen.len(), unseen.join("\n"));
        let restored: usize = matrix.values().map(|field| field.restored).sum();
        assert!(restored > 50, "{restored} restores in spite of damage");
    });
}

#[test]
fn without_a_key_all_but_what_is_gone_is_named() {
    block_on(async {
        for key in scene().objects.keys().filter(|key| kind(key).is_some()) {
            for harm in HARMS.into_iter().filter(|harm| *harm != Harm::Deleted) {
                let Some(store) = damaged(key, harm) else { continue };
                let report = verified_without_key(&store).await.unwrap();
                assert!(names(&report, key), "{key} {harm:?}: {:?}", report.findings);
            }
        }
    });
}
