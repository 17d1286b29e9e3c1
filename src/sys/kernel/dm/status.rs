//! The status lines of thin pools, thin volumes and caches, read.
//!
//! Invariant: a line that is not understood is an error, never a guess. Deliberately absent: what
//! to do about a state.

use super::table::Lines;
use crate::error::Why;
use crate::model::dm::{ThinPoolMode, ThinPoolState};
use crate::units::Sectors;

/// What a thin pool is once the kernel has given it up: it counts nothing any more.
const FAILED: ThinPoolState = ThinPoolState {
    meta_used: 0,
    meta_total: 0,
    meta_low_water: 0,
    data_used: 0,
    data_total: 0,
    low_water: 0,
    waits: true,
    mode: ThinPoolMode::Failed,
    needs_check: false,
};

/// The state of a thin pool, but for its low water: that is in its table.
pub(super) fn thin_pool(lines: &Lines) -> Result<ThinPoolState, Why> {
    match lines.as_slice() {
        [(_, _, target, status)] if target == "thin-pool" => {
            thin_pool_line(status).ok_or(Why::Data("the status of the thin pool is not understood"))
        }
        _ => Err(Why::Data("the status is not that of a thin pool")),
    }
}

fn thin_pool_line(status: &str) -> Option<ThinPoolState> {
    let words: Vec<&str> = status.split_ascii_whitespace().collect();
    let [_transaction, meta, data, _held, mode, flags @ ..] = words.as_slice() else {
        return matches!(words.as_slice(), ["Fail" | "Error"]).then_some(FAILED);
    };
    let (meta_used, meta_total) = fraction(meta)?;
    let (data_used, data_total) = fraction(data)?;
    let needs_check = flags.contains(&"needs_check");
    let mode = match *mode {
        "rw" => ThinPoolMode::ReadWrite,
        "out_of_data_space" => ThinPoolMode::OutOfDataSpace,
        // Whatever else makes it so asks for a check. What the kernel keeps to itself counts as used.
        "ro" if !needs_check && meta_used >= meta_total => ThinPoolMode::OutOfMetadataSpace,
        "ro" => ThinPoolMode::ReadOnly,
        _ => return None,
    };
    Some(ThinPoolState {
        meta_used,
        meta_total,
        // The last word, of kernels since 4.19.
        meta_low_water: flags.last().and_then(|word| word.parse().ok()).unwrap_or_default(),
        data_used,
        data_total,
        low_water: 0,
        waits: !flags.contains(&"error_if_no_space"),
        mode,
        needs_check,
    })
}

fn fraction(text: &str) -> Option<(u64, u64)> {
    let (used, total) = text.split_once('/')?;
    Some((used.parse().ok()?, total.parse().ok()?))
}

/// Sectors that a thin volume takes of its pool.
pub(super) fn thin(lines: &Lines) -> Result<Sectors, Why> {
    let [(_, _, target, status)] = lines.as_slice() else {
        return Err(Why::Data("the status is not that of a thin volume"));
    };
    let mapped = status.split_ascii_whitespace().next().and_then(|mapped| mapped.parse().ok());
    match mapped {
        Some(mapped) if target == "thin" => Ok(Sectors(mapped)),
        Some(_) | None if status.trim() == "Fail" => Err(Why::Data("its thin pool has failed")),
        Some(_) | None => Err(Why::Data("the status of the thin volume is not understood")),
    }
}

/// Blocks that a cache works with. `None`: it has failed.
pub(super) fn cache(lines: &Lines) -> Result<Option<u64>, Why> {
    let [(_, _, target, status)] = lines.as_slice() else {
        return Err(Why::Data("the status is not that of a cache"));
    };
    let words: Vec<&str> = status.split_ascii_whitespace().collect();
    let total = match words.as_slice() {
        ["Fail" | "Error"] if target == "cache" => return Ok(None),
        [_meta_block, _meta, _block, blocks, ..] if target == "cache" => fraction(blocks).map(|(_used, total)| total),
        _ => None,
    };
    total.map(Some).ok_or(Why::Data("the status of the cache is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(target: &str, status: &str) -> Lines {
        vec![(0, 8, target.to_owned(), status.to_owned())]
    }

    fn pool(status: &str) -> Result<ThinPoolState, Why> {
        thin_pool(&lines("thin-pool", status))
    }

    #[test]
    fn a_healthy_pool_counts() {
        let state = pool("0 141/1024 20/338 - rw no_discard_passdown queue_if_no_space - 256").expect("a status");
        let counted = (state.meta_used, state.meta_total, state.data_used, state.data_total);
        assert_eq!(counted, (141, 1_024, 20, 338));
        assert_eq!((state.mode, state.needs_check), (ThinPoolMode::ReadWrite, false));
        assert_eq!((state.meta_low_water, state.waits), (256, true));
        let hasty = pool("0 1/8 9/9 - rw no_discard_passdown error_if_no_space - 256").expect("a status");
        assert!(!hasty.waits);
    }

    #[test]
    fn a_pool_in_trouble_says_so() {
        let modes = [
            (
                "0 1/8 9/9 - out_of_data_space no_discard_passdown error_if_no_space - 256",
                ThinPoolMode::OutOfDataSpace,
                false,
            ),
            ("5 8/8 1/9 12 ro no_discard_passdown queue_if_no_space needs_check 256", ThinPoolMode::ReadOnly, true),
            ("5 8/8 1/9 12 ro no_discard_passdown queue_if_no_space - 2", ThinPoolMode::OutOfMetadataSpace, false),
            ("5 7/8 1/9 12 ro no_discard_passdown queue_if_no_space - 2", ThinPoolMode::ReadOnly, false),
            ("Fail", ThinPoolMode::Failed, false),
            ("Error", ThinPoolMode::Failed, false),
        ];
        for (status, mode, needs_check) in modes {
            let state = pool(status).expect(status);
            assert_eq!((state.mode, state.needs_check), (mode, needs_check), "{status}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for status in ["", "0", "0 1 2 - rw", "0 1/8 1/9 - sideways", "0 1/8 x/9 - rw - - 256", "Failing"] {
            assert!(matches!(pool(status), Err(Why::Data(_))), "{status}");
        }
        assert!(matches!(thin_pool(&lines("thin", "8 7")), Err(Why::Data(_))));
        assert!(matches!(thin_pool(&vec![]), Err(Why::Data(_))));
    }

    #[test]
    fn a_cache_counts_its_blocks() {
        let healthy = "8 72/131072 2048 3/1532 0 7 2 9 0 3 0 1 writethrough 2 migration_threshold 2048 smq 0 rw - ";
        assert_eq!(cache(&lines("cache", healthy)), Ok(Some(1_532)));
        assert_eq!(cache(&lines("cache", "Fail")), Ok(None));
        for other in [lines("cache", "8 72/131072 2048 x/1532"), lines("cache", ""), lines("linear", ""), vec![]] {
            assert!(matches!(cache(&other), Err(Why::Data(_))), "{other:?}");
        }
    }

    #[test]
    fn a_volume_takes_what_is_mapped() {
        assert_eq!(thin(&lines("thin", "2048 4095")), Ok(Sectors(2_048)));
        assert_eq!(thin(&lines("thin", "0 -")), Ok(Sectors(0)));
        assert_eq!(thin(&lines("thin", "Fail")), Err(Why::Data("its thin pool has failed")));
        for other in [lines("linear", ""), lines("linear", "7"), lines("thin", "-"), vec![]] {
            assert!(matches!(thin(&other), Err(Why::Data(_))), "{other:?}");
        }
    }
}
