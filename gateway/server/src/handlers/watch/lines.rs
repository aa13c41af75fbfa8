//! Events as lines of JSON. Those who watch the same object are told of it one after the other, so that each thread
//! keeps the line that it wrote last: whoever comes next gets the same bytes, and slow readers share them.

use std::cell::RefCell;

use bytes::{BufMut as _, Bytes, BytesMut};

/// The line that this thread wrote last.
struct Last {
    name: &'static str,
    /// As long as it is kept, nothing else has its address.
    object: Bytes,
    line: Bytes,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// The line of an event about a stored object.
pub(super) fn of(name: &'static str, object: &Bytes) -> Bytes {
    LAST.with_borrow_mut(|last| {
        if let Some(last) = last
            && last.name == name
            && last.object.as_ptr() == object.as_ptr()
            && last.object.len() == object.len()
        {
            return last.line.clone();
        }
        let line = written(name, object);
        *last = Some(Last { name, object: object.clone(), line: line.clone() });
        line
    })
}

/// `{"type":"ADDED","object":…}` and a line feed.
pub(super) fn written(name: &str, object: &Bytes) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + name.len() + 24);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(name.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_is_written_once_and_others_are_told_apart() {
        let object = Bytes::from(b"{\"a\":1}".to_vec());
        let first = of("ADDED", &object);
        assert_eq!(first, "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n");
        assert_eq!(of("ADDED", &object.clone()).as_ptr(), first.as_ptr());
        assert_eq!(of("DELETED", &object), "{\"type\":\"DELETED\",\"object\":{\"a\":1}}\n");
        assert_eq!(of("DELETED", &object.slice(..0)), "{\"type\":\"DELETED\",\"object\":}\n");
        for number in 0..100 {
            // Each may lie where the one before was.
            let object = Bytes::from(format!("{{\"a\":{number}}}"));
            assert_eq!(of("ADDED", &object), format!("{{\"type\":\"ADDED\",\"object\":{{\"a\":{number}}}}}\n"));
        }
    }
}
