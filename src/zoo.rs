//! The bug zoo: mistakes that can be planted into this program, to see whether its tests find them.
//!
//! One row for each: what it is called, whose it is, what the program does with it, and which promise that breaks.
//! At the place of the mistake stands one line that asks whether it is planted. Without the feature `zoo` nobody can
//! plant anything: the answer is a constant, and the compiler leaves nothing of the line. With it the variable `ZOO`
//! of the environment plants one for the life of the process, so one build serves all.
//!
//! Invariant: rows are written before the checks that find them, and stay when they are not found.
//!
//! Deliberately absent: any use by the daemon.

/// Whose mistake it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// stratisd 3.9.2 has it, or had something like it.
    Peer,
    /// We might have made it.
    Ours,
}

/// A mistake in words.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub bug: Bug,
    /// Its name, as in `ZOO=`.
    pub name: &'static str,
    /// Whose.
    pub origin: Origin,
    /// What the program then does.
    pub does: &'static str,
    /// What it promises and does not keep.
    pub breaks: &'static str,
}

macro_rules! catalogue {
    ($($bug:ident $origin:ident $does:literal => $breaks:literal;)*) => {
        /// A mistake that can be planted.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Bug {
            $(#[doc = $does] $bug,)*
        }

        /// All of them.
        pub const ALL: &[Row] = &[
            $(Row { bug: Bug::$bug, name: stringify!($bug), origin: Origin::$origin, does: $does, breaks: $breaks },)*
        ];
    };
}

#[rustfmt::skip]
catalogue! {
    // ---- those of stratisd 3.9.2 ------------------------------------------------------------------
    OneBadCopyRefuses Peer "a device with one good signature and one damaged is refused" => "no good copy is refused because another one is not";
    BadCopyStays Peer "damaged copies of signatures and records are not made good" => "a start makes damaged copies good";
    GrownCopiesDisagree Peer "two signatures that differ in their size alone are refused" => "a device grows whole or not at all";
    HeaderBeforeData Peer "a region's header is written before its record" => "other daemons can read what we leave, whenever the power fails";
    PairCostsDevice Peer "one torn pair of regions makes the other pair unread" => "the newest whole record counts";
    TempFileUpsets Peer "what is left of a record that was being written is taken for one" => "a cut-off save leaves the record before it";
    RepairNotSaved Peer "the record does not follow the repair of thin metadata" => "replied is durable";
    RoomNotSaved Peer "room for integrity on a grown device is entered and not saved" => "records and memory agree";
    EncryptedBeforeHeader Peer "the record says encrypted before there is a header" => "encryption is all or nothing";
    HeaderAfterDecryption Peer "the header of the encryption layer stays when a pool is decrypted" => "decryption is whole";
    AvailabilityNotKept Peer "a lower availability is announced and not kept" => "views equal state";
    LostIdsReused Peer "thin ids of filesystems that did not come up are given out again" => "a thin id belongs to one filesystem";
    TrailingSlash Peer "one slash at the end of a name is let through" => "names are checked";
    OriginInMemory Peer "snapshots of what was destroyed get their new origin in memory only" => "records and memory agree";
    FailedCreationStays Peer "a pool whose creation fails at the end stays set up" => "a failed request leaves nothing";
    StopHalfWay Peer "a stop that fails leaves down what it took down" => "a failed request leaves the pool as it was";
    SnapshotStays Peer "the volume of a snapshot that failed stays" => "no thin id leaks";
    GoneDeviceStays Peer "a stopped pool keeps a device that is gone" => "what is listed is there";
    SmallPoolIsFull Peer "a pool that has all its space from the start says that it is full" => "views equal state";
    LockedComesUp Peer "an encrypted pool comes up when it is found, whoever has unlocked it" => "what is locked stays locked";
    EventsWait Peer "a look at a thin pool waits for the operations on its pool" => "events wait for no client";
    StrangerRefuses Peer "a device that the record does not list keeps the pool from starting" => "a cut-off addition of devices leaves the pool";
    LeftOverStays Peer "a device that was joining when that was cut off is not wiped" => "a cut-off addition of devices leaves nothing";
    TwinIsTaken Peer "of a device and its copy one is taken" => "a device and its clone are not told apart by chance";
    AnswersSwapped Peer "the answer to a claim goes to whoever waits first" => "each request has its own answer";

    // ---- our own worst ideas ----------------------------------------------------------------------
    FlushForgotten Ours "headers are written and not flushed" => "replied is durable";
    FolderNotSynced Ours "the rename of a filesystem's record is not made durable" => "replied is durable";
    ContentNotSynced Ours "a filesystem's record is renamed before its content is durable" => "a record is whole or absent";
    NoIntent Ours "what is about to be made or destroyed is not noted" => "no thin id leaks";
    IntentFirst Ours "intents of what is destroyed are dropped before the volumes are" => "no thin id leaks";
    EventForgotten Ours "an event that comes while a thin pool is looked at is forgotten" => "no event is lost";
    ClaimStays Ours "a creation that fails keeps its claim" => "no claim leaks";
    NameStays Ours "a pool that stops keeps its name" => "no claim leaks";
    ReplyOvertakes Ours "replies overtake the views that explain them" => "an effect is shown before it is replied";
    SilentRevision Ours "revision 4 hears of no changed property" => "who only listens knows what a listing says";
    TableBeforeRecord Ours "sectors are in tables before they are on record" => "no table has sectors that are not durably on record";
    TicketDropped Ours "an operation gives up its place in the queue when it begins" => "what conflicts does not overlap";
    NoDeviceIsEnough Ours "a save that no device took counts as saved" => "replied is durable";
    AreasNotCleared Ours "a new device keeps the records that were on it" => "what a destroyed pool left is never taken for new";
    NoCreatingMark Ours "devices of a pool that is being made carry no mark" => "a creation is all or nothing";
    NoDestroyingMark Ours "a destruction is not recorded before it begins" => "a destruction is all or nothing";
    StartNotSaved Ours "the record does not say that the pool was started" => "replied is durable";
    ReplyLost Ours "a request that meets a fault is not answered" => "every request is answered";
    NotTakenBack Ours "a setting that could not be saved stays in memory" => "records and memory agree";
    WrittenTwice Ours "a device gets a save while another one to it has not ended" => "one write is outstanding for each device";
    OldPathStays Ours "a renamed filesystem keeps its path" => "paths follow names";
    DegradedChanges Ours "a pool that takes no requests takes them" => "availability is heeded";
    ClockRules Ours "a record's time is the clock's, also when that stands behind" => "the newest record counts";
    DescriptorStays Ours "the devices of a stopped pool stay open" => "no descriptor leaks";
    SaveCoversLate Ours "a save counts for requests that came while it was under way" => "replied is durable";
}

/// Whether a mistake is planted: never.
#[cfg(not(feature = "zoo"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Whether a mistake is planted in this process.
///
/// # Panics
/// When `ZOO` names none of them.
#[cfg(feature = "zoo")]
pub fn planted(bug: Bug) -> bool {
    static PLANTED: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(|| {
        let name = std::env::var("ZOO").ok()?;
        let row = ALL.iter().find(|row| row.name == name);
        Some(row.unwrap_or_else(|| panic!("the zoo has no {name}")).bug)
    });
    *PLANTED == Some(bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zoo_is_large_and_half_of_it_is_not_ours() {
        let peers = ALL.iter().filter(|row| row.origin == Origin::Peer).count();
        assert!(ALL.len() >= 40 && 2 * peers >= ALL.len(), "{peers} of {}", ALL.len());
    }
}
