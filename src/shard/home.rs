//! Which shard a pool lives on: a pure function, so nobody has to ask.

use crate::model::ids::PoolUuid;

/// The home of a pool among `shards` shards, from 0.
///
/// # Panics
/// When there are no shards.
pub fn home(pool: PoolUuid, shards: usize) -> usize {
    assert!(shards > 0, "a daemon has a shard");
    // UUIDs are random, so any 64 of their bits spread evenly; the low ones carry no version bits.
    let bits = pool.0.as_u64_pair().1;
    let shards = u64::try_from(shards).expect("a count of shards fits 64 bits");
    usize::try_from(bits % shards).expect("it is below a count of shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_spread_over_all_shards() {
        let mut counts = [0_u32; 4];
        for n in 0..=255_u8 {
            counts[home(PoolUuid::from_random([n.wrapping_mul(37); 16]), 4)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 32), "{counts:?}");
    }
}
