//! The object tree: every object that clients see, found by path and by id.
//!
//! It is made of views alone, which arrive in the order in which they are announced. Paths come
//! from one counter, in order of arrival, and are never given twice.
//!
//! Invariant: each object has one path and one fragment that says what its view says; a filesystem
//! or device is in the tree only while its pool is. What a pool uses changes with each filesystem that
//! comes or goes, ten signals each time: a view that says nothing else waits until somebody reads, and is
//! taken in before that is answered.
//!
//! Deliberately absent: waiting, and any rule about what views may say. A view that cannot be
//! (a filesystem of no pool) is logged and left out.

use std::collections::BTreeMap;
use std::rc::Rc;

use log::error;
use uuid::Uuid;

use crate::bus::changes::{Change, changes};
use crate::bus::facts::{DeviceFacts, FilesystemFacts, ManagerFacts, ObjectPath};
use crate::bus::fragment::{Fragment, Workbench};
use crate::bus::table::{BLOCKDEV, FILESYSTEM, Family, MANAGER, POOL};
use crate::message::View;
use crate::model::device::DeviceView;
use crate::model::filesystem::FilesystemView;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::pool::PoolView;

/// An object with what it says.
#[derive(Debug)]
pub struct Node<V> {
    /// What the table reads from.
    pub facts: V,
    fragment: Rc<Fragment>,
}

/// An object below the top one.
#[derive(Debug)]
pub enum Object {
    /// A running pool.
    Pool(Node<PoolView>),
    /// A filesystem of one.
    Filesystem(Node<FilesystemFacts>),
    /// A block device of one.
    Device(Node<DeviceFacts>),
}

/// What clients must be told.
#[derive(Debug, Eq, PartialEq)]
pub enum Notice {
    /// An object is new.
    Added(ObjectPath),
    /// An object has gone; these were its interfaces, up to the revision.
    Removed(ObjectPath, &'static str),
    /// An object changed; `None` is the top one.
    Changed(Option<ObjectPath>, Vec<Change>),
}

/// All objects.
#[derive(Debug, Default)]
pub struct Tree {
    manager: ManagerFacts,
    next: u64,
    objects: BTreeMap<ObjectPath, Object>,
    pools: BTreeMap<PoolUuid, ObjectPath>,
    filesystems: BTreeMap<(PoolUuid, FsUuid), ObjectPath>,
    devices: BTreeMap<(PoolUuid, DevUuid), ObjectPath>,
    size: usize,
    /// Views of pools that differ from what is shown in what is in use.
    unread: BTreeMap<PoolUuid, PoolView>,
    bench: Workbench,
}

impl Tree {
    /// The top object alone.
    pub fn new(version: &str) -> Self {
        let manager = ManagerFacts { version: version.to_owned(), ..ManagerFacts::default() };
        Self { manager, ..Self::default() }
    }

    /// What the top object shows.
    pub const fn manager(&self) -> &ManagerFacts {
        &self.manager
    }

    /// The object at a path.
    pub fn object(&self, path: ObjectPath) -> Option<&Object> {
        self.objects.get(&path)
    }

    /// All paths below the top object, ascending.
    pub fn paths(&self) -> impl Iterator<Item = ObjectPath> {
        self.objects.keys().copied()
    }

    /// All running pools, by id.
    pub fn pools(&self) -> impl Iterator<Item = &PoolView> {
        self.pools.keys().filter_map(|pool| self.pool(*pool))
    }

    /// The filesystems of a pool, by id.
    pub fn filesystems_of(&self, pool: PoolUuid) -> impl Iterator<Item = &FilesystemView> {
        let own = self.filesystems.range((pool, FsUuid(Uuid::nil()))..=(pool, FsUuid(Uuid::max())));
        own.filter_map(|(_, path)| match self.object(*path)? {
            Object::Filesystem(node) => Some(&node.facts.view),
            Object::Pool(_) | Object::Device(_) => None,
        })
    }

    /// The devices of a pool, by id.
    pub fn devices_of(&self, pool: PoolUuid) -> impl Iterator<Item = &DeviceView> {
        let own = self.devices.range((pool, DevUuid(Uuid::nil()))..=(pool, DevUuid(Uuid::max())));
        own.filter_map(|(_, path)| match self.object(*path)? {
            Object::Device(node) => Some(&node.facts.view),
            Object::Pool(_) | Object::Filesystem(_) => None,
        })
    }

    /// The running pool with this id.
    pub fn pool(&self, pool: PoolUuid) -> Option<&PoolView> {
        match self.object(*self.pools.get(&pool)?)? {
            Object::Pool(node) => Some(&node.facts),
            Object::Filesystem(_) | Object::Device(_) => None,
        }
    }

    /// The running pool with this name. A few hundred pools are compared at most.
    pub fn pool_named(&self, name: &str) -> Option<&PoolView> {
        self.pools.keys().filter_map(|pool| self.pool(*pool)).find(|pool| pool.name.as_str() == name)
    }

    /// The running pool at a path.
    pub fn pool_at(&self, path: &str) -> Option<&PoolView> {
        match self.object(ObjectPath::parse(path)?)? {
            Object::Pool(node) => Some(&node.facts),
            Object::Filesystem(_) | Object::Device(_) => None,
        }
    }

    /// The filesystem at a path.
    pub fn filesystem_at(&self, path: &str) -> Option<&FilesystemFacts> {
        match self.object(ObjectPath::parse(path)?)? {
            Object::Filesystem(node) => Some(&node.facts),
            Object::Pool(_) | Object::Device(_) => None,
        }
    }

    /// Where a pool is.
    pub fn pool_path(&self, pool: PoolUuid) -> Option<ObjectPath> {
        self.pools.get(&pool).copied()
    }

    /// Where a filesystem is.
    pub fn filesystem_path(&self, pool: PoolUuid, filesystem: FsUuid) -> Option<ObjectPath> {
        self.filesystems.get(&(pool, filesystem)).copied()
    }

    /// Where a device is.
    pub fn device_path(&self, pool: PoolUuid, device: DevUuid) -> Option<ObjectPath> {
        self.devices.get(&(pool, device)).copied()
    }

    /// How many bytes the entries of all objects take together.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// What every object says, marshalled, by path.
    pub fn fragments(&self) -> impl Iterator<Item = &Rc<Fragment>> {
        self.objects.values().map(Object::fragment)
    }
}

impl Object {
    /// What it says, marshalled.
    pub const fn fragment(&self) -> &Rc<Fragment> {
        match self {
            Self::Pool(node) => &node.fragment,
            Self::Filesystem(node) => &node.fragment,
            Self::Device(node) => &node.fragment,
        }
    }

    const fn interface(&self) -> &'static str {
        match self {
            Self::Pool(_) => POOL.interface,
            Self::Filesystem(_) => FILESYSTEM.interface,
            Self::Device(_) => BLOCKDEV.interface,
        }
    }
}

// ---- views -----------------------------------------------------------------------------------------

impl Tree {
    /// Applies changes that belong together, and says what to announce, in order. What stopped pools
    /// there are is announced last, once.
    pub fn apply(&mut self, views: Vec<View>) -> Vec<Notice> {
        let mut notices = Vec::new();
        let touches_stopped = |view: &View| matches!(view, View::Stopped(_) | View::StoppedGone(_));
        let before = views.iter().any(touches_stopped).then(|| self.manager.clone());
        for view in views {
            self.apply_one(view, &mut notices);
        }
        if let Some(before) = before {
            let changes = changes(&MANAGER, &before, &self.manager);
            push_changes(&mut notices, None, changes);
        }
        notices
    }

    /// Takes in what has waited for somebody who reads, and says what to announce.
    pub fn catch_up(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        for view in std::mem::take(&mut self.unread).into_values() {
            self.apply_pool(view, &mut notices);
        }
        notices
    }

    fn apply_one(&mut self, view: View, notices: &mut Vec<Notice>) {
        match view {
            View::Pool(view) => {
                self.unread.remove(&view.uuid);
                match self.shown(&view) {
                    Some(shown) if *shown == view => {}
                    Some(shown) if *shown == (PoolView { physical_used: shown.physical_used, ..view.clone() }) => {
                        self.unread.insert(view.uuid, view);
                    }
                    Some(_) | None => self.apply_pool(view, notices),
                }
            }
            View::Filesystem(view) => self.apply_filesystem(view, notices),
            View::Device(view) => self.apply_device(view, notices),
            View::Stopped(view) => drop(self.manager.stopped.insert(view.uuid, view)),
            View::PoolGone(pool) => self.remove_pool(pool, notices),
            View::FilesystemGone(pool, filesystem) => {
                let path = self.filesystems.remove(&(pool, filesystem));
                self.remove(path, notices);
            }
            View::DeviceGone(pool, device) => {
                let path = self.devices.remove(&(pool, device));
                self.remove(path, notices);
            }
            View::StoppedGone(pool) => drop(self.manager.stopped.remove(&pool)),
            View::Keys(keys) => self.manager.keys = keys.into_iter().collect(),
        }
    }

    /// What a pool shows now.
    fn shown(&self, view: &PoolView) -> Option<&PoolView> {
        match self.objects.get(self.pools.get(&view.uuid)?)? {
            Object::Pool(node) => Some(&node.facts),
            Object::Filesystem(_) | Object::Device(_) => None,
        }
    }

    fn apply_pool(&mut self, view: PoolView, notices: &mut Vec<Notice>) {
        let known = self.pools.get(&view.uuid).copied();
        let path = known.unwrap_or_else(|| self.fresh_path());
        self.pools.insert(view.uuid, path);
        let node = Node { fragment: Fragment::new(&mut self.bench, path, &POOL, &view).into(), facts: view };
        self.put(path, &POOL, Object::Pool(node), notices, |object| match object {
            Object::Pool(node) => Some(&node.facts),
            Object::Filesystem(_) | Object::Device(_) => None,
        });
    }

    fn apply_filesystem(&mut self, view: FilesystemView, notices: &mut Vec<Notice>) {
        let Some(pool_path) = self.pool_path(view.pool) else {
            return error!("a filesystem is announced before its pool (pool={})", view.pool);
        };
        let key = (view.pool, view.record.uuid);
        let path = self.filesystem_path(key.0, key.1).unwrap_or_else(|| self.fresh_path());
        self.filesystems.insert(key, path);
        let facts = FilesystemFacts { pool_path, view };
        let node = Node { fragment: Fragment::new(&mut self.bench, path, &FILESYSTEM, &facts).into(), facts };
        self.put(path, &FILESYSTEM, Object::Filesystem(node), notices, |object| match object {
            Object::Filesystem(node) => Some(&node.facts),
            Object::Pool(_) | Object::Device(_) => None,
        });
    }

    fn apply_device(&mut self, view: DeviceView, notices: &mut Vec<Notice>) {
        let Some(pool_path) = self.pool_path(view.pool) else {
            return error!("a device is announced before its pool (pool={})", view.pool);
        };
        let key = (view.pool, view.uuid);
        let path = self.device_path(key.0, key.1).unwrap_or_else(|| self.fresh_path());
        self.devices.insert(key, path);
        let facts = DeviceFacts { pool_path, view };
        let node = Node { fragment: Fragment::new(&mut self.bench, path, &BLOCKDEV, &facts).into(), facts };
        self.put(path, &BLOCKDEV, Object::Device(node), notices, |object| match object {
            Object::Device(node) => Some(&node.facts),
            Object::Pool(_) | Object::Filesystem(_) => None,
        });
    }

    /// Puts an object at its path and announces it, or what differs from the one that was there.
    fn put<V>(
        &mut self,
        path: ObjectPath,
        family: &Family<V>,
        object: Object,
        notices: &mut Vec<Notice>,
        facts: fn(&Object) -> Option<&V>,
    ) {
        self.size += object.fragment().size();
        let Some(before) = self.objects.insert(path, object) else {
            return notices.push(Notice::Added(path));
        };
        self.size -= before.fragment().size();
        let after = self.objects.get(&path).and_then(facts).expect("it was put there two lines above");
        let before = facts(&before).expect("the index of a kind holds paths of that kind");
        push_changes(notices, Some(path), changes(family, before, after));
    }

    /// The pool and whatever the shard did not take away before.
    fn remove_pool(&mut self, pool: PoolUuid, notices: &mut Vec<Notice>) {
        let filesystems: Vec<_> = self.filesystems.keys().filter(|(of, _)| *of == pool).copied().collect();
        let devices: Vec<_> = self.devices.keys().filter(|(of, _)| *of == pool).copied().collect();
        for key in filesystems {
            let path = self.filesystems.remove(&key);
            self.remove(path, notices);
        }
        for key in devices {
            let path = self.devices.remove(&key);
            self.remove(path, notices);
        }
        self.unread.remove(&pool);
        let path = self.pools.remove(&pool);
        self.remove(path, notices);
    }

    fn remove(&mut self, path: Option<ObjectPath>, notices: &mut Vec<Notice>) {
        let Some((path, object)) = path.and_then(|path| self.objects.remove_entry(&path)) else {
            return;
        };
        self.size -= object.fragment().size();
        notices.push(Notice::Removed(path, object.interface()));
    }

    fn fresh_path(&mut self) -> ObjectPath {
        let path = ObjectPath(self.next);
        self.next += 1;
        path
    }
}

fn push_changes(notices: &mut Vec<Notice>, path: Option<ObjectPath>, changes: Vec<Change>) {
    if !changes.is_empty() {
        notices.push(Notice::Changed(path, changes));
    }
}
