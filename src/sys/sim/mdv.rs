//! The files of a metadata volume as a journalling file system keeps them.
//!
//! Invariant: `now` is `durable` with `journal` applied in order. Creations, renames and removals
//! reach the disk in order, so a power loss keeps a prefix of the journal. The content of a file is
//! durable only after `sync`; before that a power loss leaves the old content, nothing, a prefix of
//! the new one, or all of it.
//!
//! Deliberately absent: space, permissions, times, folders other than the two.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::dice::Dice;
use crate::sys::Folder;

type Names = BTreeMap<(Folder, String), u64>;

#[derive(Clone, Debug, Hash)]
enum Step {
    Create(Folder, String, u64),
    Rename(Folder, String, String),
    Remove(Folder, String),
}

impl Step {
    fn folder(&self) -> Folder {
        match self {
            Self::Create(folder, ..) | Self::Rename(folder, ..) | Self::Remove(folder, _) => *folder,
        }
    }

    /// The file that has lost its name in these: no later step gives it one.
    fn apply(&self, names: &mut Names) -> Option<u64> {
        match self {
            Self::Create(folder, name, file) => names.insert((*folder, name.clone()), *file),
            Self::Remove(folder, name) => names.remove(&(*folder, name.clone())),
            Self::Rename(folder, from, to) => {
                let file = names.remove(&(*folder, from.clone()))?;
                names.insert((*folder, to.clone()), file)
            }
        }
    }
}

#[derive(Clone, Debug, Default, Hash)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
}

/// One metadata volume.
#[derive(Clone, Debug, Hash)]
pub(super) struct MdvStore {
    /// The UUID of its XFS.
    pub(super) uuid: Uuid,
    durable: Names,
    now: Names,
    journal: Vec<Step>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
}

impl MdvStore {
    /// An empty one.
    pub(super) const fn new(uuid: Uuid) -> Self {
        Self {
            uuid,
            durable: Names::new(),
            now: Names::new(),
            journal: Vec::new(),
            files: BTreeMap::new(),
            next_file: 0,
        }
    }

    /// Names of the files in a folder, sorted.
    pub(super) fn list(&self, folder: Folder) -> Vec<String> {
        self.now.keys().filter(|(in_folder, _)| *in_folder == folder).map(|(_, name)| name.clone()).collect()
    }

    fn file(&self, folder: Folder, name: &str) -> Result<u64, i32> {
        self.now.get(&(folder, name.to_owned())).copied().ok_or(libc::ENOENT)
    }

    /// The content of a file.
    pub(super) fn read(&self, folder: Folder, name: &str) -> Result<Vec<u8>, i32> {
        let file = self.file(folder, name)?;
        Ok(self.files.get(&file).expect("a named file has a content").now.clone())
    }

    /// Creates or truncates a file and writes it.
    pub(super) fn write(&mut self, folder: Folder, name: &str, bytes: &[u8]) {
        let file = self.file(folder, name).unwrap_or_else(|_| {
            let file = self.next_file;
            self.next_file += 1;
            self.step(Step::Create(folder, name.to_owned(), file));
            file
        });
        self.files.entry(file).or_default().now = bytes.to_vec();
    }

    /// Makes the content of a file durable, not its name.
    pub(super) fn sync(&mut self, folder: Folder, name: &str) -> Result<(), i32> {
        let file = self.file(folder, name)?;
        let content = self.files.get_mut(&file).expect("a named file has a content");
        content.durable.clone_from(&content.now);
        Ok(())
    }

    /// Renames a file over another.
    pub(super) fn rename(&mut self, folder: Folder, from: &str, to: &str) -> Result<(), i32> {
        self.file(folder, from)?;
        self.step(Step::Rename(folder, from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&mut self, folder: Folder, name: &str) {
        if self.file(folder, name).is_ok() {
            self.step(Step::Remove(folder, name.to_owned()));
        }
    }

    fn step(&mut self, step: Step) {
        // What lost its name may have it again after a power loss.
        let _nameless = step.apply(&mut self.now);
        self.journal.push(step);
    }

    /// Makes the names in a folder durable, and with them what the journal holds before them.
    pub(super) fn sync_folder(&mut self, folder: Folder) {
        let steps = self.journal.iter().rposition(|step| step.folder() == folder).map_or(0, |last| last + 1);
        self.harden(steps);
    }

    /// Unmounted cleanly: everything is durable.
    pub(super) fn sync_all(&mut self) {
        self.harden(self.journal.len());
        for content in self.files.values_mut() {
            content.durable.clone_from(&content.now);
        }
    }

    fn harden(&mut self, steps: usize) {
        for step in self.journal.drain(..steps) {
            if let Some(nameless) = step.apply(&mut self.durable) {
                self.files.remove(&nameless);
            }
        }
    }

    /// The power fails.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        self.journal.truncate(dice.index(self.journal.len()));
        self.harden(self.journal.len());
        self.now = self.durable.clone();
        // Some were made in steps that are lost.
        let named: BTreeSet<u64> = self.durable.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
        for content in self.files.values_mut().filter(|content| content.now != content.durable) {
            match dice.upto(3) {
                0 => {}
                1 => content.durable.clear(),
                2 => content.durable = content.now[..dice.index(content.now.len())].to_vec(),
                _ => content.durable.clone_from(&content.now),
            }
            content.now.clone_from(&content.durable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: Folder = Folder::Filesystems;

    fn outcomes(work: impl Fn(&mut MdvStore)) -> Vec<Vec<(String, Vec<u8>)>> {
        let mut seen: Vec<_> = (0..256)
            .map(|seed| {
                let mut store = MdvStore::new(Uuid::nil());
                work(&mut store);
                store.lose(&mut Dice::new(seed));
                let content = |name: String| {
                    let bytes = store.read(RECORDS, &name).expect("listed");
                    (name, bytes)
                };
                store.list(RECORDS).into_iter().map(content).collect()
            })
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    #[test]
    fn the_careful_way_leaves_the_old_or_the_new_content() {
        let seen = outcomes(|store| {
            store.write(RECORDS, "a", b"old");
            store.sync_all();
            store.write(RECORDS, "a.temp", b"new");
            store.sync(RECORDS, "a.temp").expect("there");
            store.rename(RECORDS, "a.temp", "a").expect("there");
        });
        let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
        assert_eq!(
            seen,
            [vec![file("a", b"new")], vec![file("a", b"old")], vec![file("a", b"old"), file("a.temp", b"new")]]
        );
    }

    #[test]
    fn a_rename_without_a_sync_may_leave_an_empty_file() {
        let seen = outcomes(|store| {
            store.write(RECORDS, "a.temp", b"new");
            store.rename(RECORDS, "a.temp", "a").expect("there");
            store.sync_folder(RECORDS);
        });
        assert!(seen.contains(&vec![("a".to_owned(), Vec::new())]));
        assert!(seen.contains(&vec![("a".to_owned(), b"new".to_vec())]));
        assert!(seen.iter().all(|files| files.len() == 1), "the name was durable");
    }

    #[test]
    fn names_survive_in_the_order_in_which_they_were_made() {
        let seen = outcomes(|store| {
            for name in ["a", "b", "c"] {
                store.write(RECORDS, name, b"");
            }
            store.remove(RECORDS, "a");
        });
        let names: Vec<String> =
            seen.into_iter().map(|files| files.into_iter().map(|(name, _)| name).collect::<String>()).collect();
        assert_eq!(names, ["", "a", "ab", "abc", "bc"]);
    }

    #[test]
    fn syncing_one_folder_takes_the_journal_before_it_along() {
        let mut store = MdvStore::new(Uuid::nil());
        store.write(Folder::Intents, "i", b"");
        store.write(RECORDS, "r", b"");
        store.write(Folder::Intents, "later", b"");
        store.sync_folder(RECORDS);
        for seed in 0..64 {
            let mut after = store.clone();
            after.lose(&mut Dice::new(seed));
            assert_eq!(after.list(RECORDS), ["r"]);
            assert_eq!(after.list(Folder::Intents)[0], "i");
        }
    }
}
