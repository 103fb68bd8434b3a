//! What a verification leaves behind: results that are stored, samples that cover everything, and what happens when nothing can be
//! stored.

use crate::bed::*;
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
