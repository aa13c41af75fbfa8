//! Maps of sparse files in tar archives: the GNU header form and the pax forms 0.0, 0.1 and 1.0.

use super::archive::decimal;

/// More segments than any real file has in a layer.
const MAX_SEGMENTS: usize = 100_000;

/// Stored bytes and where they belong in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub offset: u64,
    pub bytes: u64,
}

/// Numbers of a GNU header: offset and size in octal. Empty fields end the map; a broken one is `None`.
pub(super) fn from_fields(fields: impl Iterator<Item = ([u8; 12], [u8; 12])>) -> Vec<Option<Segment>> {
    fields
        .take_while(|(offset, _)| offset[0] != 0)
        .map(|(offset, bytes)| Some(Segment { offset: number(&offset)?, bytes: number(&bytes)? }))
        .collect()
}

/// The 21 fields of a continuation block.
pub(super) fn flatten(block: &[u8; 512]) -> impl Iterator<Item = ([u8; 12], [u8; 12])> {
    block.chunks_exact(24).take(21).map(|pair| {
        let (mut offset, mut bytes) = ([0; 12], [0; 12]);
        offset.copy_from_slice(&pair[..12]);
        bytes.copy_from_slice(&pair[12..]);
        (offset, bytes)
    })
}

/// Octal text, or a big-endian number when the first byte's top bit is set.
fn number(field: &[u8; 12]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[..4]
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 })
            .then(|| field[4..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(text, 8).ok()
}

/// Pax form 0.1 (`GNU.sparse.map` = offset,size,…) or 0.0 (one record per number).
pub(super) fn from_pax(records: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<Segment>> {
    let map = records.iter().find(|(key, _)| key == b"GNU.sparse.map");
    let numbers: Option<Vec<u64>> = match map {
        Some((_, value)) if value.is_empty() => Some(Vec::new()),
        Some((_, value)) => value.split(|byte| *byte == b',').map(decimal).collect(),
        None => records
            .iter()
            .filter(|(key, _)| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes")
            .map(|(_, value)| decimal(value))
            .collect(),
    };
    let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0)?;
    Some(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], bytes: pair[1] }).collect())
}

pub(super) fn check_count(segments: usize) -> Result<(), &'static str> {
    if segments > MAX_SEGMENTS { Err("too many segments") } else { Ok(()) }
}

/// Segments are in order, don't overlap, lie inside of the file and use up exactly what is stored.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    check_count(segments.len())?;
    let (mut end, mut sum) = (0_u64, 0_u64);
    for segment in segments {
        if segment.offset < end {
            return Err("segments overlap or are out of order");
        }
        end = segment.offset.checked_add(segment.bytes).ok_or("a segment is out of range")?;
        sum = sum.checked_add(segment.bytes).ok_or("a segment is out of range")?;
    }
    if end > size {
        return Err("a segment is outside of the file");
    }
    if sum == stored { Ok(()) } else { Err("the map doesn't fit what is stored") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, bytes: u64) -> Segment {
        Segment { offset, bytes }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        assert!(check(&[segment(0, 5), segment(10, 5)], 20, 10).is_ok());
        assert!(check(&[segment(0, 5), segment(4, 5)], 20, 10).is_err());
        assert!(check(&[segment(0, 5)], 4, 5).is_err());
        assert!(check(&[segment(u64::MAX, 5)], u64::MAX, 5).is_err());
        assert!(check(&[segment(0, 5)], 20, 6).is_err());
    }

    #[test]
    fn pax_maps_come_in_two_forms() {
        let one = [(b"GNU.sparse.map".to_vec(), b"0,5,10,5".to_vec())];
        assert_eq!(from_pax(&one), Some(vec![segment(0, 5), segment(10, 5)]));
        let many: Vec<_> = [("GNU.sparse.offset", "3"), ("GNU.sparse.numbytes", "4")]
            .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .into();
        assert_eq!(from_pax(&many), Some(vec![segment(3, 4)]));
        assert_eq!(from_pax(&many[..1]), None);
    }
}
