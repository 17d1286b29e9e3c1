//! Free space of a group of a new filesystem, and which blocks of it the free list takes.
//!
//! Invariant: extents are in order, not empty, and do not touch.
//!
//! Deliberately absent: groups in use.

use crate::xfs::geometry::{FREE_LIST, Geometry, INODE_CHUNK};

/// A run of blocks of a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) blocks: u64,
}

impl Extent {
    const fn end(self) -> u64 {
        self.start + self.blocks
    }
}

/// What of a group is free.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Space {
    /// What the trees list.
    pub(super) free: Vec<Extent>,
    /// The first of the blocks in the free list.
    pub(super) list: u64,
}

impl Space {
    /// The space of a group; `None` when the group is too full for its free list or the root inodes.
    pub(super) fn of(geometry: &Geometry, group: u64) -> Option<Self> {
        let mut free = vec![between(geometry.first_free(), geometry.length_of(group))?];
        if group == geometry.log_group {
            free = without(free, Extent { start: geometry.log_block, blocks: geometry.log_blocks })?;
        }
        // The smallest extent that is large enough gives the free list its blocks, the first of equals.
        let enough = free.iter().filter(|extent| extent.blocks >= FREE_LIST);
        let list = enough.min_by_key(|extent| (extent.blocks, extent.start))?.start;
        free = without(free, Extent { start: list, blocks: FREE_LIST })?;
        if group == 0 {
            free = without(free, Extent { start: geometry.root_block(), blocks: INODE_CHUNK })?;
        }
        Some(Self { free, list })
    }

    /// All free blocks but those of the list.
    pub(super) fn blocks(&self) -> u64 {
        self.free.iter().map(|extent| extent.blocks).sum()
    }

    /// The longest extent.
    pub(super) fn longest(&self) -> u64 {
        self.free.iter().map(|extent| extent.blocks).max().unwrap_or(0)
    }
}

fn between(start: u64, end: u64) -> Option<Extent> {
    (start < end).then(|| Extent { start, blocks: end - start })
}

/// What is left when blocks in the middle of one extent are taken; `None` when no extent has them.
fn without(free: Vec<Extent>, taken: Extent) -> Option<Vec<Extent>> {
    let holds = |extent: &Extent| extent.start <= taken.start && taken.end() <= extent.end();
    let from = free.iter().position(holds)?;
    let parts = [between(free[from].start, taken.start), between(taken.end(), free[from].end())];
    let (before, after) = (&free[..from], &free[from + 1..]);
    Some(before.iter().copied().chain(parts.into_iter().flatten()).chain(after.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(all: &[(u64, u64)]) -> Vec<Extent> {
        all.iter().map(|&(start, blocks)| Extent { start, blocks }).collect()
    }

    #[test]
    fn taking_blocks_leaves_what_lies_before_and_after_them() {
        let free = extents(&[(0, 10), (20, 10)]);
        let left = |start, blocks| without(free.clone(), Extent { start, blocks });
        assert_eq!(left(22, 4), Some(extents(&[(0, 10), (20, 2), (26, 4)])));
        assert_eq!(left(0, 10), Some(extents(&[(20, 10)])));
        assert_eq!(left(20, 1), Some(extents(&[(0, 10), (21, 9)])));
        assert_eq!(left(8, 4), None);
    }
}
