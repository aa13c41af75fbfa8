//! Random names and identifiers.

/// The letters and digits that Kubernetes makes name suffixes of: none that could spell a word or be misread.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `count` characters for the end of a generated name.
pub(crate) fn suffix(count: usize) -> String {
    let mut text = String::with_capacity(count);
    let mut bytes = [0u8; 16];
    while text.len() < count {
        fill(&mut bytes);
        // 243 is 9 * 27: above it the first characters would come more often.
        let fair = bytes.iter().filter(|byte| **byte < 243).take(count - text.len());
        text.extend(fair.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])));
    }
    text
}

/// A version 4 UUID.
pub(crate) fn uuid() -> String {
    let mut bytes = [0u8; 16];
    fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A number below `limit`, which is not 0.
pub(crate) fn below(limit: u32) -> u32 {
    let mut bytes = [0u8; 8];
    fill(&mut bytes);
    u32::try_from(u64::from_be_bytes(bytes) % u64::from(limit)).expect("smaller than the limit")
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the kernel's random numbers don't run out");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_version_four() {
        let uuid = uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(matches!(uuid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn a_suffix_has_the_asked_length_and_no_vowels() {
        let text = suffix(40);
        assert_eq!(text.len(), 40);
        assert!(text.bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}
