//! Journal files: frames without a directory, and an end that may be torn.

use crate::load::Loaded;
use crate::report::Report;
use walden::base::Lsn;
use walden::codec::journal::JournalOpener;
use walden::codec::object::{Expect, walk_frames};
use walden::format::frame::{FrameHead, split_frame};
use walden::format::header::HEADER_BYTES;
use walden::format::journal::{JournalFrame, JournalFrameKind};
use walden::format::record::Field;
use walden::format::show::Shown;

const ANY: Expect<'static> = Expect { repository: None, key: None, kind: None };

/// What opening the frames told.
#[derive(Default)]
struct Told {
    shown: Vec<Shown>,
    first: Option<Lsn>,
    end: Option<Lsn>,
    synced_len: u64,
}

/// Says what a journal file holds. A break past what was synced is a torn tail, which a crash leaves; before it, damage.
pub fn tell(loaded: &Loaded, frames: bool, report: &mut Report) {
    let bytes = &loaded.bytes;
    let opener = match &loaded.keys {
        None => None,
        Some(keys) => match JournalOpener::open(bytes, keys, &ANY) {
            Ok(opener) => Some(opener),
            Err(error) => {
                report.damage(error);
                None
            }
        },
    };
    if let Some(opener) = &opener {
        report.add("generation", opener.generation().show());
        report.add("previous", opener.previous().show());
    }
    let (mut good, mut count, mut told, mut broken) = (HEADER_BYTES as u64, 0u64, Told::default(), None);
    for frame in walk_frames(bytes) {
        let opened = frame.map_err(|error| error.to_string()).and_then(|frame| {
            let at = bytes.get(frame.offset as usize..frame.end() as usize).unwrap_or_default();
            if let Some(opener) = &opener {
                let plain = opener.frame(frame.number, at).map_err(|error| error.to_string())?;
                let decoded = JournalFrame::decode(&plain).map_err(|error| error.to_string())?;
                told.add(frame.offset, &decoded);
            }
            Ok(frame)
        });
        match opened {
            Ok(frame) => (good, count) = (frame.end(), count + 1),
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    report.add("frame_count", Shown::number(count));
    report.add("good_len", Shown::number(good));
    if opener.is_some() {
        report.add("synced_len", Shown::number(told.synced_len));
        report.add("wal_start", told.first.map_or(Shown::Nothing, Shown::text));
        report.add("wal_end", told.end.map_or(Shown::Nothing, Shown::text));
        if frames {
            report.add("frames", Shown::List(told.shown));
        }
    }
    if let Some(error) = broken {
        if good < told.synced_len || goes_on(bytes, good) {
            report.damage(format!("good up to byte {good}, and what follows was written after it: {error}"));
        } else {
            report.add("tail", Shown::text(format!("torn, or never written, from byte {good}: {error}")));
        }
    }
}

/// Whether a good frame stands behind the one at `broken`: then that one is no torn tail.
fn goes_on(bytes: &[u8], broken: u64) -> bool {
    let at = |offset: u64| bytes.get(usize::try_from(offset).ok()?..);
    let next = at(broken).and_then(|rest| FrameHead::decode(rest).ok()).map(|(head, _)| head.stored_len());
    next.and_then(|len| at(broken.saturating_add(len))).is_some_and(|rest| split_frame(rest).is_ok())
}

impl Told {
    fn add(&mut self, offset: u64, frame: &JournalFrame<'_>) {
        let head = &frame.head;
        self.synced_len = self.synced_len.max(head.synced_len);
        let end = match head.kind {
            JournalFrameKind::Wal => {
                self.first.get_or_insert(head.start);
                head.start.saturating_add(frame.body.len() as u64)
            }
            JournalFrameKind::Begin | JournalFrameKind::Mark => head.start,
        };
        self.end = Some(end);
        self.shown.push(Shown::Record(vec![
            ("offset", Shown::number(offset)),
            ("kind", head.kind.show()),
            ("timeline", head.timeline.show()),
            ("start", head.start.show()),
            ("end", end.show()),
            ("server_time", head.server_time.show()),
            ("synced_len", Shown::number(head.synced_len)),
        ]));
    }
}
