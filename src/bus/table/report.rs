//! Rows of `org.storage.stratis3.Report`, which the top object has.
//!
//! One method with any number of report names, so that reports come and go without a revision.

use crate::bus::facts::ManagerFacts;
use crate::bus::table::decode::manager::get_report;
use crate::bus::table::reply::text;
use crate::bus::table::{ALL, Family, Served, method};

/// Reports that clients print.
#[rustfmt::skip]
pub static REPORT: Family<ManagerFacts> = Family {
    interface: "org.storage.stratis3.Report",
    methods: &[
        method(ALL, "GetReport", "name:s", "result:s return_code:q return_string:s", Served(get_report, text)),
    ],
    properties: &[],
};
