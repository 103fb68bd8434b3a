//! What encoder and decoder keep of a frame for later ones, once it is sure: images, and what records did to the pages of images.
//! Spec: formats/deltas.md.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::cache::ImageCache;
use super::diff::page_of;
use super::framing::{Dressed, Mark, Place, Positions, Stretch};
use super::history::{Change, NO_BLOCK};
use super::records::ImageAt;
use super::replay;
use super::structure::{Structure, flag};
use crate::base::Lsn;
use crate::wal::WalVersion;
use std::io;

/// The records of a frame.
#[derive(Debug, Clone, Copy)]
pub struct KeptRecords<'a> {
    /// The version of the server.
    pub version: WalVersion,
    /// What they are.
    pub structure: &'a Structure,
    /// Where they lie in the body.
    pub stretches: &'a [Stretch],
    /// Their positions.
    pub lsns: &'a [Lsn],
    /// Their images.
    pub images: &'a [ImageAt],
}

/// Keeps what `records` have of images, and what they do to pages. Images that are compressed are passed over. The records lie in
/// `body`, in a range with page headers at `marks`.
///
/// # Errors
/// No room for it: `cache` is of no use any more, and empty.
pub fn keep(
    records: &KeptRecords<'_>,
    body: Dressed<'_>,
    place: Place,
    marks: &[Mark],
    cache: &mut ImageCache,
) -> io::Result<()> {
    let kept = try_keep(records, body, place, marks, cache);
    if kept.is_err() {
        cache.clear();
    }
    kept
}

fn try_keep(
    records: &KeptRecords<'_>,
    mut body: Dressed<'_>,
    place: Place,
    marks: &[Mark],
    cache: &mut ImageCache,
) -> io::Result<()> {
    let mut positions = Positions::new(place, marks);
    let mut room = Vec::new();
    let mut images = records.images.iter();
    for (number, (stretch, lsn)) in records.stretches.iter().zip(records.lsns).enumerate() {
        let structure = records.structure;
        let Some((kind, plan)) = structure.kind_of(number) else { break };
        if kind.blocks.is_empty() {
            continue;
        }
        let fields = structure.numbers(number, plan);
        let of = |field: usize| fields.get(field).copied().unwrap_or(0);
        let known = replay::knows(kind.rmgr);
        if !known && plan.images.is_empty() {
            continue;
        }
        let main_len = plan.main.map_or(0, of) as usize;
        let record = body.bytes(stretch.start, stretch.end, &mut room);
        let mut change = Change {
            version: records.version,
            end: Lsn::ZERO,
            xid: structure.xids.get(number).copied().unwrap_or(0),
            rmgr: kind.rmgr,
            info: kind.info,
            role: 0,
            init: false,
            blocks: [NO_BLOCK; 3],
            data: &[],
            main: record.get(record.len().saturating_sub(main_len)..).unwrap_or(&[]),
        };
        if known {
            change.end = positions.lsn_behind(stretch.end + place.padding(stretch.end));
            for (block, at) in kind.blocks.iter().zip(&plan.blocks) {
                if let Some(to) = change.blocks.get_mut(usize::from(block.id)) {
                    *to = of(at.block);
                }
            }
        }
        let mut at = plan.header_bytes;
        for (block, plan) in kind.blocks.iter().zip(&plan.blocks) {
            let image = plan.image.and_then(|_| images.next());
            let image_len = image.map_or(0, |image| image.shape.len);
            let image_bytes = record.get(at..at + image_len).unwrap_or(&[]);
            at += image_len;
            let data_len = plan.data.map_or(0, of) as usize;
            change.data = record.get(at..at + data_len).unwrap_or(&[]);
            at += data_len;
            match image {
                Some(image) if image.shape.compressed => {}
                Some(image) => cache.insert(image.shape.block, *lsn, |page| {
                    page_of(image_bytes, image.shape.hole, page);
                })?,
                None if known => {
                    let Some(relation) = structure.tables.relations.get(usize::from(block.relation)) else {
                        continue;
                    };
                    let fork = block.flags & flag::FORK_MASK;
                    let id = BlockId { relation: *relation, fork, block: of(plan.block) };
                    change.role = block.id;
                    change.init = block.flags & flag::WILL_INIT != 0;
                    if change.init {
                        cache.init(id, *lsn)?;
                    }
                    cache.change(&id, &change)?;
                }
                None => {}
            }
        }
    }
    Ok(())
}
