//! How a stricter reader than ours takes a device: stratisd 3.9.2 (from the description of its format).
//!
//! It takes the header of each pair from the primary region or else from the copy, goes on with the
//! newer pair only, and wants that pair's record to fit that header. Our writer must never leave a
//! device that it refuses, so pools stay interchangeable even after a crash.

use stratisd::format::header::HEADER_SECTORS;
use stratisd::format::mda::{HEADER_BYTES, PRIMARIES, REGIONS};
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

const REGION: Sectors = Sectors(508);

struct Header {
    data_crc: u32,
    used: usize,
    time: (u64, u32),
}

fn header(region: &[u8]) -> Option<Header> {
    let word = |at: usize| u32::from_le_bytes(region[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(region[at..at + 8].try_into().expect("eight bytes"));
    (word(0) == crc32c::crc32c(&region[4..HEADER_BYTES])).then(|| Header {
        data_crc: word(4),
        used: usize::try_from(long(8)).expect("a short record"),
        time: (long(16), word(24)),
    })
}

/// Whether the device would be taken.
///
/// # Errors
/// Why not.
pub(crate) fn accepts(machine: &Machine, disk: &str) -> Result<(), &'static str> {
    let start = |region: usize| Sectors(HEADER_SECTORS.0 + REGION.0 * region as u64);
    let regions: Vec<Vec<u8>> = (0..REGIONS).map(|region| machine.bytes(disk, start(region), REGION)).collect();
    let mut newest: Option<(usize, Header)> = None;
    for pair in 0..PRIMARIES {
        let found = header(&regions[pair]).or_else(|| header(&regions[pair + PRIMARIES]));
        let found = found.ok_or("both headers of a pair are damaged")?;
        if found.used > 0 && newest.as_ref().is_none_or(|(_, best)| best.time < found.time) {
            newest = Some((pair, found));
        }
    }
    let Some((pair, header)) = newest else { return Ok(()) };
    let fits = |region: &[u8]| crc32c::crc32c(&region[HEADER_BYTES..HEADER_BYTES + header.used]) == header.data_crc;
    if fits(&regions[pair]) || fits(&regions[pair + PRIMARIES]) {
        Ok(())
    } else {
        Err("neither copy of the newer record fits its header")
    }
}
