//! What a range of an epoch needs of its frames: found out backward, from the range to the epoch's start, by their traces.
//!
//! A page that is wanted behind a frame is its image there, if it has one, and so is what that image was made of before the frame;
//! otherwise it is the page before the frame, with what the frame's records did to it.

#![deny(clippy::indexing_slicing)]

use super::block::BlockId;
use super::trace::{Bits, FrameTrace, Made};

/// What is wanted of a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameWants {
    /// By image.
    pub(super) images: Bits,
    /// By page that is made empty.
    pub(super) inits: Bits,
    /// By split.
    pub(super) moved: Bits,
}

/// The slots that are wanted before the frame that was looked at last.
#[derive(Debug)]
pub struct Wants {
    slots: Bits,
}

impl Wants {
    /// Nothing is, of an epoch whose encoder had a cache of `pages_max` pages.
    pub fn none(pages_max: usize) -> Self {
        Wants { slots: Bits::zeros(pages_max) }
    }

    /// All of the frame of `trace` is wanted, which is before those that were looked at.
    pub fn whole(&mut self, trace: &FrameTrace) -> FrameWants {
        self.before(trace, |_| true)
    }

    /// What is wanted of the frame of `trace`, which is before those that were looked at; `None` when that is nothing.
    pub fn part(&mut self, trace: &FrameTrace) -> Option<FrameWants> {
        let changes = trace.changed.iter().any(|slot| self.slots.get(*slot as usize));
        let wants = self.before(trace, |wanted| wanted);
        let any = changes || wants.images.any() || wants.inits.any() || wants.moved.any();
        any.then_some(wants)
    }

    fn before(&mut self, trace: &FrameTrace, wants: impl Fn(bool) -> bool) -> FrameWants {
        let FrameTrace { images, inits, moved, .. } = trace;
        let mut found = FrameWants {
            images: Bits::zeros(images.len()),
            inits: Bits::zeros(inits.len()),
            moved: Bits::zeros(moved.len()),
        };
        let behind = |slot: Option<u32>| slot.is_some_and(|slot| self.slots.get(slot as usize));
        let mut before = Vec::new();
        let mut need = |made: Made, images: &mut Bits| match made {
            Made::OfSlot(slot) => before.push(slot),
            Made::OfImage(number) => images.set(number as usize, true),
            Made::OfBase(_) | Made::Alone => {}
        };
        // Backward: an image may be made of one before it.
        for (number, (slot, made)) in images.iter().enumerate().rev() {
            if wants(found.images.get(number) || behind(*slot)) {
                found.images.set(number, true);
                need(*made, &mut found.images);
            }
        }
        for (number, (made, new)) in moved.iter().enumerate() {
            // What the page that was split becomes is put in its place: that makes a difference when changes are forgotten.
            let split = matches!(made, Made::OfSlot(slot) if behind(Some(*slot)));
            if wants(split || behind(*new)) {
                found.moved.set(number, true);
                need(*made, &mut found.images);
            }
        }
        for (number, slot) in inits.iter().enumerate() {
            found.inits.set(number, wants(behind(*slot)));
        }
        for slot in images.iter().map(|(slot, _)| slot).chain(inits).flatten() {
            self.slots.set(*slot as usize, false);
        }
        for slot in before {
            self.slots.set(slot as usize, true);
        }
        found
    }
}

impl FrameWants {
    /// The blocks whose pages of the base are wanted. `trace` is of the same frame.
    pub fn base_blocks(&self, trace: &FrameTrace) -> Vec<BlockId> {
        let images = trace.images.iter().enumerate().filter(|(number, _)| self.images.get(*number));
        let moved = trace.moved.iter().enumerate().filter(|(number, _)| self.moved.get(*number));
        let made = images.map(|(_, (_, made))| made).chain(moved.map(|(_, (made, _))| made));
        made.filter_map(|made| match made {
            Made::OfBase(block) => Some(*block),
            _ => None,
        })
        .collect()
    }
}
