//! Protobuf's own forms: tags, varints, lengths.

/// One field as it is written.
pub(super) enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads fields one after the other.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; `Some(None)` at the end, `None` if the bytes make no sense.
    #[expect(clippy::option_option, reason = "the end is not a mistake, and a mistake is not the end")]
    pub fn field(&mut self) -> Option<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some(Some((number, wire)))
    }

    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

pub(super) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

pub(super) fn write_number(out: &mut Vec<u8>, number: u32, value: u64) {
    write_varint(out, u64::from(number) << 3);
    write_varint(out, value);
}

pub(super) fn write_double(out: &mut Vec<u8>, number: u32, value: f64) {
    write_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn write_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    write_length(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Begins a field of so many bytes, which follow.
pub(super) fn write_length(out: &mut Vec<u8>, number: u32, length: usize) {
    write_varint(out, u64::from(number) << 3 | 2);
    write_varint(out, length as u64);
}

/// Writes a message whose length is known only when it is written.
pub(super) fn write_message<T>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    write_varint(out, u64::from(number) << 3 | 2);
    let start = out.len();
    // Most messages are shorter than 128 bytes: one byte of length is kept free, and more is made room for.
    out.push(0);
    let result = write(out);
    let length = out.len() - start - 1;
    if let Ok(length @ ..0x80) = u8::try_from(length) {
        out[start] = length;
    } else {
        let mut written = Vec::with_capacity(5);
        write_varint(&mut written, length as u64);
        out.splice(start..=start, written);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_length_are_read_as_they_were_written() {
        for length in [0usize, 1, 127, 128, 16_383, 16_384, 100_000] {
            let mut out = Vec::new();
            write_message(&mut out, 19, |out| out.extend(std::iter::repeat_n(7, length)));
            write_number(&mut out, 1, u64::MAX);
            let mut reader = Reader(&out);
            match reader.field() {
                Some(Some((19, Wire::Bytes(bytes)))) => assert_eq!(bytes.len(), length),
                _ => panic!("{length} bytes are not read back"),
            }
            assert!(matches!(reader.field(), Some(Some((1, Wire::Number(u64::MAX))))));
            assert!(matches!(reader.field(), Some(None)));
        }
    }
}
