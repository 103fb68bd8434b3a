//! Page checksums and verdicts, one test each.

use super::*;

const START: Lsn = Lsn::new(0x300_0000);

fn page(lsn: u64, block: u32) -> [u8; BLOCK_BYTES] {
    let mut page = [0; BLOCK_BYTES];
    for (i, byte) in page.iter_mut().enumerate() {
        *byte = (i * 31 % 251) as u8;
    }
    page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
    page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
    let sum = page_checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

/// The algorithm one lane at a time, the way the header file's comment tells it.
fn checksum_by_description(page: &[u8; BLOCK_BYTES], block: u32) -> u16 {
    let mut page = *page;
    page[8..10].fill(0);
    let mut result = 0;
    for (lane, seed) in LANE_SEEDS.iter().enumerate() {
        let mut sum = *seed;
        let words = (0..64).map(|row| {
            let at = (row * 32 + lane) * 4;
            u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
        });
        for word in words.chain([0, 0]) {
            let t = sum ^ word;
            sum = t.wrapping_mul(FNV_PRIME) ^ (t >> 17);
        }
        result ^= sum;
    }
    ((result ^ block) % 65_535) as u16 + 1
}

#[test]
fn lanes_agree_with_the_description() {
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut page = [0; BLOCK_BYTES];
        rng.fill(&mut page);
        let block = rng.u32(..);
        assert_eq!(page_checksum(&page, block), checksum_by_description(&page, block));
    }
}

#[test]
fn judges_pages() {
    assert_eq!(judge_page(&page(0x200_0000, 7), 7, START), PageVerdict::Ok);
    assert_eq!(judge_page(&page(0x200_0000, 7), 8, START), PageVerdict::Bad, "another block's page");
    assert_eq!(judge_page(&[0; BLOCK_BYTES], 3, START), PageVerdict::New);
    let mut torn = page(0x400_0000, 7);
    torn[8000] ^= 1;
    assert_eq!(judge_page(&torn, 7, START), PageVerdict::Skipped { lsn: Lsn::new(0x400_0000) });
    torn[4..8].fill(0);
    assert_eq!(judge_page(&torn, 7, START), PageVerdict::Bad);
    let mut half_zero = page(0x200_0000, 7);
    half_zero[..4096].fill(0);
    assert_eq!(judge_page(&half_zero, 7, START), PageVerdict::Bad, "a zero header over data");
}

#[test]
fn every_flipped_bit_is_seen() {
    let good = page(0x200_0000, 1);
    for at in (0..BLOCK_BYTES).step_by(61).chain([8, 9]) {
        let mut bad = good;
        bad[at] ^= 0x10;
        assert_ne!(judge_page(&bad, 1, Lsn::MAX), PageVerdict::Ok, "byte {at}");
    }
}

#[test]
fn blocks_count_from_the_start_of_the_relation() {
    let mut content = Vec::new();
    for block in 0..4 {
        content.extend_from_slice(&page(1, 2 * BLOCKS_PER_FILE + 32 + block));
    }
    content.extend_from_slice(&[9; 100]);
    assert_eq!(suspects(&content, 2, 32, START), []);
    content[3 * BLOCK_BYTES + 5000] ^= 1;
    assert_eq!(suspects(&content, 2, 32, START), [Suspect { block: 35, verdict: PageVerdict::Bad }]);
    assert_eq!(suspects(&content, 1, 32, START).len(), 4);
}

#[test]
fn relations_are_known_by_their_paths() {
    let version = "pg_tblspc/16384/PG_15_202209061";
    for (path, number) in [
        ("base/5/1249", 0),
        ("base/5/1249.3", 3),
        ("base/5/1249_fsm", 0),
        ("base/5/1249_vm.1", 1),
        ("base/5/16390_init", 0),
        ("global/1262", 0),
        (&format!("{version}/5/16400.12"), 12),
    ] {
        assert_eq!(relation_file(path), Some(number), "{path}");
    }
    for path in [
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "base/5/t3_16390",
        "base/5/1249_x",
        "base/5/1249.",
        "base/5/1249.01",
        "base/5/01249",
        "base/5/99999999999",
        "base/x/1249",
        "base/1249",
        "global/pg_control",
        "pg_xact/0000",
        "1249",
        "pg_tblspc/16384/5/1249",
        &format!("{version}/1249"),
    ] {
        assert_eq!(relation_file(path), None, "{path}");
    }
}
