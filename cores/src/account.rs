//! Where the time of an operation goes: an account that its tasks share, by kind of work.
//!
//! A task opens an account; the tasks that it spawns afterwards book to the same one. What is worth
//! a figure is wrapped in `rt::timed`, with a kind that is a literal in the source.
//!
//! Invariant: a kind is booked once for each moment in which at least one piece of work of that kind
//! is under way, so no kind exceeds the time of the whole. Work of different kinds may overlap.
//!
//! Deliberately absent: sharing over cores, and a history. Who wants figures reads them when the
//! operation is over.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::Instant;
use crate::limits::KINDS_MAX;

/// One kind of work.
#[derive(Clone, Copy, Debug)]
struct Booked {
    kind: &'static str,
    /// Time of the stretches that have ended.
    spent: Duration,
    /// Pieces of work under way.
    open: usize,
    /// When the first of them began.
    since: Instant,
}

/// The time of one operation, by kind of work.
#[derive(Debug, Default)]
pub(crate) struct Account {
    kinds: RefCell<Vec<Booked>>,
}

impl Account {
    /// What was spent up to `now`, in the order in which the kinds first came up.
    pub(crate) fn spent(&self, now: Instant) -> Spent {
        let kinds = self.kinds.borrow();
        let spent = |one: &Booked| one.spent + if one.open > 0 { now.since(one.since) } else { Duration::ZERO };
        Spent(kinds.iter().map(|one| (one.kind, spent(one))).collect())
    }

    /// Where a kind is booked.
    fn place(&self, kind: &'static str, now: Instant) -> usize {
        let mut kinds = self.kinds.borrow_mut();
        let place = kinds.iter().position(|one| one.kind == kind);
        place.unwrap_or_else(|| {
            // The last place takes what finds none: a wrong figure is better than a failed operation.
            if kinds.len() < KINDS_MAX {
                kinds.push(Booked { kind, spent: Duration::ZERO, open: 0, since: now });
            }
            kinds.len() - 1
        })
    }

    /// Books time that was measured elsewhere.
    pub(crate) fn add(&self, kind: &'static str, spent: Duration, now: Instant) {
        let place = self.place(kind, now);
        self.kinds.borrow_mut()[place].spent += spent;
    }

    /// Work of a kind begins.
    pub(crate) fn open(self: &Rc<Self>, kind: &'static str, now: Instant) -> Open {
        let place = self.place(kind, now);
        let mut kinds = self.kinds.borrow_mut();
        let one = &mut kinds[place];
        if one.open == 0 {
            one.since = now;
        }
        one.open += 1;
        Open { account: Rc::clone(self), place }
    }
}

/// A piece of work under way.
pub(crate) struct Open {
    account: Rc<Account>,
    place: usize,
}

impl Open {
    /// The work has ended, or was given up.
    pub(crate) fn close(&self, now: Instant) {
        let mut kinds = self.account.kinds.borrow_mut();
        let one = &mut kinds[self.place];
        one.open -= 1;
        if one.open == 0 {
            one.spent += now.since(one.since);
        }
    }
}

/// Time spent, by kind of work. Prints as `kind=milliseconds` with a blank before each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Spent(Vec<(&'static str, Duration)>);

impl Spent {
    /// The time of one kind; zero if nothing of it was done.
    pub fn of(&self, kind: &str) -> Duration {
        self.0.iter().find(|(name, _)| *name == kind).map_or(Duration::ZERO, |(_, spent)| *spent)
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, spent) in &self.0 {
            write!(out, " {kind}={:.1}", spent.as_secs_f64() * 1000.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::START + Duration::from_millis(milliseconds)
    }

    #[test]
    fn overlapping_work_of_a_kind_is_booked_once() {
        let account = Rc::new(Account::default());
        let one = account.open("dm", at(10));
        let other = account.open("dm", at(20));
        one.close(at(30));
        assert_eq!(account.spent(at(35)).of("dm"), Duration::from_millis(25), "up to now");
        other.close(at(50));
        account.open("dm", at(100)).close(at(101));
        assert_eq!(account.spent(at(500)).of("dm"), Duration::from_millis(41));
    }

    #[test]
    fn kinds_are_apart_and_print_in_order() {
        let account = Rc::new(Account::default());
        let format = account.open("format", at(0));
        account.open("udev", at(1)).close(at(3));
        format.close(at(10));
        account.add("suspended", Duration::from_micros(1_500), at(4));
        account.add("suspended", Duration::from_micros(500), at(5));
        let spent = account.spent(at(10));
        assert_eq!(spent.to_string(), " format=10.0 udev=2.0 suspended=2.0");
        assert_eq!(spent.of("dm"), Duration::ZERO);
    }

    #[test]
    fn kinds_are_bounded() {
        const MANY: [&str; KINDS_MAX + 3] =
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18"];
        let account = Rc::new(Account::default());
        for kind in MANY {
            account.open(kind, at(0)).close(at(1));
        }
        let spent = account.spent(at(1));
        assert_eq!(spent.0.len(), KINDS_MAX);
        assert_eq!(spent.of(MANY[KINDS_MAX - 1]), Duration::from_millis(4), "the last place has the rest");
    }
}
