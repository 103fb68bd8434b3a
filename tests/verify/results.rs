//! What a verification leaves behind: results that are stored, samples that cover everything, and what happens when nothing can be
//! stored.

use crate::bed::*;
use walden::base::{ObjectId, ObjectKey};
use walden::codec::object::{Expect, OpenObject};
use walden::format::header::ObjectKind;
use walden::format::verification::{VerifyDepth, VerifyOutcome};
use walden::repo::{layout, verifications};
use walden::verify::{Budget, Depth, Keep, Options, Report, Stored};

const CONTENT: VerifyDepth = VerifyDepth::Content;

/// Outcome and depth of the backups of the cluster.
fn backups(report: &Report) -> Vec<(VerifyOutcome, VerifyDepth)> {
    let own = report.clusters.iter().find(|cluster| cluster.name.as_str() == CLUSTER).unwrap();
    own.backups.iter().map(|known| (known.outcome, known.depth)).collect()
}

fn is_stored(report: &Report) -> bool {
    report.clusters.iter().all(|cluster| matches!(cluster.stored, Stored::Yes { .. }))
}

#[test]
fn a_whole_verification_makes_every_backup_verified_and_is_stored_once() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        for run in 1..=3 {
            let report = verified(&store).await.unwrap();
            assert_eq!(report.findings, []);
            assert!(is_stored(&report));
            assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT); 2]);
            let cluster = cluster(&store).await.unwrap();
            let newest = verifications::newest(&cluster).await.unwrap();
            assert_eq!(newest.number, run);
            let result = newest.result.unwrap();
            assert_eq!((result.damage_count, result.bytes_covered), (0, result.bytes_total));
            assert_eq!(store.written().len(), 2, "one result a cluster: those before are removed");
        }
    });
}

#[test]
fn a_store_that_cannot_be_written_to_is_verified_all_the_same() {
    block_on(async {
        let report = verified(&Damaged::nowhere()).await.unwrap();
        assert_eq!(report.findings, []);
        for cluster in &report.clusters {
            assert!(
                matches!(&cluster.stored, Stored::No { reason } if reason.contains("read-only")),
                "{:?}",
                cluster.stored
            );
        }
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT); 2]);
        let store = Damaged::nowhere().writable();
        let report = verified_with(&store, Options { keep: Keep::Discard, ..Options::WHOLE }).await.unwrap();
        assert!(!is_stored(&report) && store.written().is_empty());
    });
}

#[test]
fn damage_is_stored_and_forgotten_once_it_is_mended() {
    block_on(async {
        let name = cluster(&Damaged::nowhere()).await.unwrap().name().clone();
        let key = layout::manifest(&name, &backup_ids()[1], 0);
        let store = Damaged::nowhere().writable();
        let hurt = store.clone().flipped(&key, 300, 1);
        let report = verified(&hurt).await.unwrap();
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT), (VerifyOutcome::Damaged, CONTENT)]);
        // A look at references alone neither sees nor forgets it.
        let references = Options { depth: Depth::References, ..Options::WHOLE };
        let report = verified_with(&store, references).await.unwrap();
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT), (VerifyOutcome::Damaged, CONTENT)]);
        let result = verifications::newest(&cluster(&store).await.unwrap()).await.unwrap().result.unwrap();
        assert_eq!((result.number, result.damage_count), (2, 1));
        assert_eq!(result.damage[0].key, key.as_str());
        // The smallest sample reads it again.
        let sample = Options { budget: Budget::Bytes(1), ..Options::WHOLE };
        let report = verified_with(&store, sample).await.unwrap();
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT); 2]);
    });
}

#[test]
fn references_tell_what_is_gone_or_cut_short_without_reading_it() {
    block_on(async {
        let references = Options { depth: Depth::References, ..Options::WHOLE };
        let whole = verified_with(&Damaged::nowhere(), references).await.unwrap();
        assert_eq!(whole.findings, []);
        assert_eq!(backups(&whole), [(VerifyOutcome::Verified, VerifyDepth::References); 2]);
        for key in scene().objects.keys() {
            if !matches!(
                kind(key),
                Some("segment of pages" | "segment of WAL" | "segment of deltas" | "manifest")
            ) {
                continue;
            }
            let everything = verified(&Damaged::nowhere().with(key, None)).await.unwrap();
            for bytes in [None, Some(scene().objects[key].slice(..200))] {
                let report = verified_with(&Damaged::nowhere().with(key, bytes), references).await.unwrap();
                assert_eq!(names(&report, key), names(&everything, key), "{key}: {:?}", report.findings);
                // Of an epoch of deltas, what follows cannot be decoded either: nobody has to try it to know.
                assert!(hurt(&report).is_superset(&hurt(&everything)), "{key}: {:?}", report.findings);
            }
        }
    });
}

/// A segment of pages one of whose chunks was sealed as what it is not: only who decompresses it can tell.
async fn with_a_false_chunk(store: &Damaged) -> (ObjectKey, Damaged) {
    let cluster = cluster(store).await.unwrap();
    let key = scene().objects.keys().find(|key| kind(key) == Some("segment of pages")).unwrap();
    let keys = cluster.repo().keys();
    let expect = Expect { repository: None, key: Some(key), kind: None };
    let object = OpenObject::open(scene().objects[key].clone(), &*keys, &expect).unwrap();
    let id: ObjectId = key.file_name().parse().unwrap();
    let mut writer = cluster.repo().writer(ObjectKind::PagesSegment, key, id.0, 0, 0);
    for number in 0..object.directory().frames.len() {
        let mut packed = object.packed_chunk(number).unwrap();
        if number == 0 {
            *packed.bytes.last_mut().unwrap() ^= 1;
        }
        writer.add_packed(&packed, object.directory().frames[number].position);
    }
    let bytes = writer.finish(object.directory().meta.0.clone()).bytes;
    (key.clone(), store.clone().with(key, Some(bytes)))
}

#[test]
fn seals_prove_what_was_proved_before_and_nothing_else() {
    block_on(async {
        let seals = Options { depth: Depth::Seals, ..Options::WHOLE };
        let store = Damaged::nowhere().writable();
        let (key, forged) = with_a_false_chunk(&store).await;
        let names_it = |report: Report| report.findings.iter().any(|finding| finding.key == key.as_str());
        // Nobody proved anything yet, so everything is looked at as deep as can be.
        assert!(names_it(verified_with(&forged, seals).await.unwrap()));
        // What was found is looked at until it is mended.
        assert!(names_it(verified_with(&forged, seals).await.unwrap()));
        let report = verified_with(&store, seals).await.unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT); 2]);
        // Now it is proved. Whoever has the keys could have put another one in its place, no disk could.
        assert!(!names_it(verified_with(&forged, seals).await.unwrap()));
        assert!(names_it(verified_with(&forged.clone().stored_at(&key, i64::MAX), seals).await.unwrap()));
        assert!(names_it(verified_with(&forged, Options::WHOLE).await.unwrap()));
    });
}

#[test]
fn every_part_of_what_was_proved_is_under_a_seal() {
    block_on(async {
        let seals = Options { depth: Depth::Seals, ..Options::WHOLE };
        let store = Damaged::nowhere().writable();
        assert_eq!(verified(&store).await.unwrap().findings, []);
        for (key, bytes) in scene().objects.iter().filter(|(key, _)| kind(key) == Some("segment of pages")) {
            for at in (0..bytes.len()).step_by(bytes.len() / 7) {
                let hurt = store.clone().flipped(key, at, 16);
                let report = verified_with(&hurt, Options { keep: Keep::Discard, ..seals }).await.unwrap();
                assert!(
                    report.findings.iter().any(|finding| finding.key == key.as_str()),
                    "{key}: byte {at}"
                );
            }
        }
    });
}

#[test]
fn samples_cover_everything_and_find_what_is_damaged_anywhere() {
    block_on(async {
        let sample = Options { budget: Budget::Share(0.2), ..Options::WHOLE };
        for key in
            scene().objects.keys().filter(|key| kind(key).is_some_and(|kind| kind.starts_with("segment")))
        {
            let store = Damaged::nowhere().flipped(key, scene().objects[key].len() / 2, 4).writable();
            let mut runs = 0;
            loop {
                runs += 1;
                let report = verified_with(&store, sample).await.unwrap();
                if names(&report, key) {
                    break;
                }
                assert!(runs < 12, "{key} was not read in {runs} runs of a fifth");
            }
        }
        let store = Damaged::nowhere().writable();
        let mut covered = Vec::new();
        for _ in 0..12 {
            let report = verified_with(&store, sample).await.unwrap();
            assert_eq!(report.findings, []);
            covered.push(backups(&report));
        }
        assert_eq!(covered[0], [(VerifyOutcome::Verified, VerifyDepth::References); 2]);
        assert_eq!(covered[11], [(VerifyOutcome::Verified, CONTENT); 2]);
    });
}

#[test]
fn a_damaged_result_is_named_and_the_next_one_begins_anew() {
    block_on(async {
        let store = Damaged::nowhere().writable();
        verified(&store).await.unwrap();
        let name = cluster(&store).await.unwrap().name().clone();
        let key = layout::verification(&name, 1);
        let mut bytes = store.written()[&key].to_vec();
        bytes[200] ^= 1;
        let hurt = Damaged::nowhere().with(&key, Some(bytes.into())).writable();
        let report = verified(&hurt).await.unwrap();
        let finding = report.findings.iter().find(|finding| finding.key == key.as_str()).unwrap();
        assert!(finding.cost.starts_with("nothing to restores"), "{}", finding.cost);
        assert_eq!(backups(&report), [(VerifyOutcome::Verified, CONTENT); 2]);
        assert_eq!(verifications::newest(&cluster(&hurt).await.unwrap()).await.unwrap().number, 2);
    });
}
