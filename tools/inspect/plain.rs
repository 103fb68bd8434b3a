//! The marker, key slots, sealed epochs, links.

use crate::load::Loaded;
use crate::report::Report;
use walden::codec::keyslot::{self, KeySlotError};
use walden::format::FormatError;
use walden::format::envelope::PlainObject;
use walden::format::keyslot::{Epoch, EpochLink, EpochSlot, KeySlot};
use walden::format::marker::RepositoryMarker;
use walden::format::record::Field;
use walden::format::show::Shown;
use walden::operate::{Exit, Failure};

/// Says what a plain object holds. Its magic was looked at.
pub fn report(loaded: &Loaded) -> Report {
    let mut report = Report::default();
    let bytes = &loaded.bytes;
    let told = match bytes.get(..8) {
        Some(b"WALDREP\x01") => tell::<RepositoryMarker>(bytes, "repository marker", &mut report).map(drop),
        Some(b"WALDKEY\x01") => tell_slot(loaded, &mut report),
        Some(b"WALDEPL\x01") => tell_link(loaded, &mut report),
        Some(b"WALDEPA\x01") => tell_epoch_object(loaded, &mut report),
        _ => tell_epoch(loaded, &mut report),
    };
    if let Err(error) = told {
        report.damage(error);
    }
    report
}

fn tell<T: PlainObject + Field>(bytes: &[u8], what: &str, report: &mut Report) -> Result<T, FormatError> {
    report.add("file", Shown::text(format!("{what}, {} bytes", bytes.len())));
    let record = T::from_object(bytes)?;
    report.add("record", record.show());
    Ok(record)
}

fn tell_slot(loaded: &Loaded, report: &mut Report) -> Result<(), FormatError> {
    let slot: KeySlot = tell(&loaded.bytes, "key slot", report)?;
    if let Err(error) = keyslot::slot_public(&loaded.bytes, slot.repository, &slot.name) {
        report.damage(error);
    } else if let Some(unlock) = &loaded.unlock {
        match keyslot::open_slot(&loaded.bytes, slot.repository, &slot.name, unlock) {
            Ok(_) => report.add("opens", Shown::Flag(true)),
            Err(error @ (KeySlotError::WrongSecret { .. } | KeySlotError::WrongKind { .. })) => {
                report.add("opens", Shown::Flag(false));
                report.problem(Failure::new(Exit::Key, error));
            }
            Err(error) => report.damage(error),
        }
    }
    misplaced(loaded, &format!("keys/{}", slot.name), report);
    Ok(())
}

fn tell_epoch(loaded: &Loaded, report: &mut Report) -> Result<(), FormatError> {
    let epoch: EpochSlot = tell(&loaded.bytes, "sealed epoch", report)?;
    if let Some(keys) = &loaded.keys {
        let held = keys.epochs().find(|held| held.epoch == epoch.epoch);
        let vouched = held.is_some_and(|held| keyslot::vouched(&epoch, held));
        report.add("vouched_by_its_epoch", Shown::Flag(vouched));
        if !vouched {
            report.damage("nobody who holds the epoch vouches for this slot");
        }
    }
    misplaced(loaded, &format!("keys/epochs/{}/{}", epoch.epoch, epoch.slot), report);
    Ok(())
}

fn tell_epoch_object(loaded: &Loaded, report: &mut Report) -> Result<(), FormatError> {
    let bytes = &loaded.bytes;
    report.add("file", Shown::text(format!("key epoch, {} bytes", bytes.len())));
    let epoch = Epoch::from_object(bytes)?;
    report.add("repository", Shown::text(epoch.repository));
    report.add("epoch", Shown::number(epoch.epoch));
    if let Some(link) = &epoch.link {
        report.add("link", EpochLink::from_object(&link.0)?.show());
    }
    let held = loaded.keys.as_ref().and_then(|keys| keys.epoch(epoch.epoch));
    let mut slots = Vec::new();
    for sealed in &epoch.slots {
        let sealed = EpochSlot::from_object(&sealed.0)?;
        if held.is_some_and(|held| !keyslot::vouched(&sealed, held)) {
            report.damage(format!("nobody who holds the epoch vouches for slot {}", sealed.slot));
        }
        slots.push(sealed.show());
    }
    report.add("slots", Shown::List(slots));
    misplaced(loaded, &format!("keys/epochs/{}/_epoch", epoch.epoch), report);
    Ok(())
}

fn tell_link(loaded: &Loaded, report: &mut Report) -> Result<(), FormatError> {
    let link: EpochLink = tell(&loaded.bytes, "link of a key epoch", report)?;
    if let Some(keys) = &loaded.keys {
        let proved = keys.chain().key(link.epoch).is_some_and(|public| *public == link.public);
        report.add("leads_to_its_epoch", Shown::Flag(proved));
        if !proved {
            report.damage("nobody who held the epoch before signed it");
        }
    }
    misplaced(loaded, &format!("keys/epochs/{}/_link", link.epoch), report);
    Ok(())
}

fn misplaced(loaded: &Loaded, expected: &str, report: &mut Report) {
    if let Some(key) = loaded.key.as_ref().filter(|key| key.as_str() != expected) {
        report.damage(format!("it lies at {key}, and was made for {expected}"));
    }
}
