//! Which devices a pool may be made of.
//!
//! Input is what `sys` found out without changing anything; output is the devices to use, each
//! once, or the reason why not. Invariant: an admitted device carries nothing that anybody knows.
//!
//! Deliberately absent: who else wants the device now. That is the directory's.

use crate::error::Refusal;
use crate::limits::{DEVICE_SECTORS_MIN, DEVICES_IN_REQUEST_MAX};
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::model::name::Name;

/// The request's paths without repetitions, in the order given; refused if there are none or too
/// many.
pub fn distinct(name: &Name, asked: &[DevicePath]) -> Result<Vec<DevicePath>, Refusal> {
    if asked.is_empty() {
        return Err(Refusal::NoDevices(name.clone()));
    }
    if asked.len() > DEVICES_IN_REQUEST_MAX {
        return Err(Refusal::TooManyDevices { asked: asked.len(), max: DEVICES_IN_REQUEST_MAX });
    }
    let mut paths: Vec<DevicePath> = Vec::with_capacity(asked.len());
    for path in asked {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    Ok(paths)
}

/// Merges candidates that turned out to be one path; two paths to one device are refused, because
/// nobody means that.
pub fn merge(found: Vec<Candidate>) -> Result<Vec<Candidate>, Refusal> {
    let mut merged: Vec<Candidate> = Vec::with_capacity(found.len());
    for candidate in found {
        match merged.iter().find(|other| other.number == candidate.number) {
            None => merged.push(candidate),
            Some(same) if same.path == candidate.path => {}
            Some(same) => return Err(Refusal::DeviceTwice { one: same.path.clone(), other: candidate.path }),
        }
    }
    Ok(merged)
}

/// Of two sets of devices: what is asked for and not present, and what is present and not asked for.
pub fn difference(
    asked: &[(DeviceNumber, DevicePath)],
    present: &[(DeviceNumber, DevicePath)],
) -> (Vec<DevicePath>, Vec<DevicePath>) {
    let without = |these: &[(DeviceNumber, DevicePath)], those: &[(DeviceNumber, DevicePath)]| {
        let absent = |(number, _): &&(DeviceNumber, DevicePath)| those.iter().all(|(other, _)| other != number);
        these.iter().filter(absent).map(|(_, path)| path.clone()).collect()
    };
    (without(asked, present), without(present, asked))
}

/// Whether every candidate may be initialised: nobody lives there, it is large enough, and all have
/// the same block sizes.
pub fn admit(candidates: &[Candidate]) -> Result<(), Refusal> {
    for candidate in candidates {
        unoccupied(candidate)?;
        if candidate.size < DEVICE_SECTORS_MIN {
            let path = candidate.path.clone();
            return Err(Refusal::DeviceSmall { path, size: candidate.size, min: DEVICE_SECTORS_MIN });
        }
    }
    match candidates.split_first() {
        Some((first, rest)) => rest.iter().try_for_each(|other| same_blocks(first, other)),
        None => Ok(()),
    }
}

fn unoccupied(candidate: &Candidate) -> Result<(), Refusal> {
    let what = match &candidate.occupant {
        Occupant::Nobody => return Ok(()),
        Occupant::Stratis | Occupant::Unlocked => "a Stratis signature of a pool that is not known here".to_owned(),
        Occupant::Other(what) => what.clone(),
    };
    Err(Refusal::DeviceOccupied { path: candidate.path.clone(), what })
}

fn same_blocks(one: &Candidate, other: &Candidate) -> Result<(), Refusal> {
    if one.blocks == other.blocks {
        return Ok(());
    }
    Err(mixed(one, other))
}

/// Says that two devices with different block sizes cannot be in one tier.
pub fn mixed(one: &Candidate, other: &Candidate) -> Refusal {
    Refusal::BlockSizes {
        one: one.path.clone(),
        one_logical: one.blocks.logical,
        one_physical: one.blocks.physical,
        other: other.path.clone(),
        other_logical: other.blocks.logical,
        other_physical: other.blocks.physical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::{BlockSizes, DeviceNumber};
    use crate::units::Sectors;

    fn path(text: &str) -> DevicePath {
        DevicePath::try_from(text).expect("absolute")
    }

    fn disk(text: &str, number: u64) -> Candidate {
        Candidate {
            path: path(text),
            number: DeviceNumber(number, 0),
            size: DEVICE_SECTORS_MIN,
            blocks: BlockSizes { logical: 512, physical: 512 },
            occupant: Occupant::Nobody,
            hardware: None,
        }
    }

    #[test]
    fn one_path_twice_is_one_device_and_two_paths_to_it_are_refused() {
        assert_eq!(merge(vec![disk("/a", 1), disk("/a", 1)]).expect("merged").len(), 1);
        let refusal = merge(vec![disk("/a", 1), disk("/b", 1)]).expect_err("two nodes");
        assert_eq!(refusal, Refusal::DeviceTwice { one: path("/a"), other: path("/b") });
    }

    #[test]
    fn what_is_occupied_small_or_odd_is_refused() {
        assert_eq!(admit(&[disk("/a", 1), disk("/b", 2)]), Ok(()));
        let ext4 = Candidate { occupant: Occupant::Other("ext4".into()), ..disk("/a", 1) };
        assert!(matches!(admit(&[ext4]), Err(Refusal::DeviceOccupied { .. })));
        let small = Candidate { size: Sectors(DEVICE_SECTORS_MIN.0 - 1), ..disk("/a", 1) };
        assert!(matches!(admit(&[small]), Err(Refusal::DeviceSmall { .. })));
        let big_blocks = Candidate { blocks: BlockSizes { logical: 4096, physical: 4096 }, ..disk("/b", 2) };
        assert!(matches!(admit(&[disk("/a", 1), big_blocks]), Err(Refusal::BlockSizes { .. })));
    }

    #[test]
    fn a_request_without_devices_is_refused() {
        let name = Name::try_from("p").expect("a name");
        assert_eq!(distinct(&name, &[]), Err(Refusal::NoDevices(name.clone())));
        assert_eq!(distinct(&name, &[path("/a"), path("/a")]).expect("distinct").len(), 1);
    }
}
