//! Protocol buffers on the wire: what ttrpc and containerd's messages are made of.
//!
//! A message is read as its numbered fields and written field by field; the numbers stand where the
//! message is used, beside the name of its `.proto`.

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A message that came.
#[derive(Debug, Default)]
pub struct Message<'a>(Vec<(u64, Value<'a>)>);

/// Takes a number of seven bits per byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

impl<'a> Message<'a> {
    /// Reads a message; `None` when it is none.
    pub fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)?),
                1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
                2 => {
                    let length = varint(&mut bytes)?;
                    Value::Bytes(take(&mut bytes, length)?)
                }
                5 => Value::Number(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?).into()),
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Message(fields))
    }

    /// Every value of a repeated field.
    pub fn all(&self, tag: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter_map(move |(found, value)| match value {
            Value::Bytes(bytes) if *found == tag => Some(*bytes),
            _ => None,
        })
    }

    /// A field of bytes, or a message; empty when it is not there.
    pub fn bytes(&self, tag: u64) -> &'a [u8] {
        self.all(tag).last().unwrap_or_default()
    }

    /// A string; empty when it is not there or is no UTF-8, which protocol buffers do not allow.
    pub fn text(&self, tag: u64) -> &'a str {
        std::str::from_utf8(self.bytes(tag)).unwrap_or_default()
    }

    /// A number; 0 when it is not there.
    pub fn number(&self, tag: u64) -> u64 {
        let values = self.0.iter().rev().filter(|(found, _)| *found == tag);
        values.map(|(_, value)| if let Value::Number(n) = value { *n } else { 0 }).next().unwrap_or(0)
    }

    /// A message inside this one; an empty one when it is not there or is none.
    pub fn message(&self, tag: u64) -> Message<'a> {
        Message::read(self.bytes(tag)).unwrap_or_default()
    }

    /// A map of strings.
    pub fn pairs(&self, tag: u64) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.all(tag).filter_map(Message::read).map(|pair| (pair.text(1), pair.text(2)))
    }

    /// Every value of a repeated number, one by one or packed as proto3 has them.
    pub fn numbers(&self, tag: u64) -> Vec<u64> {
        let mut all = Vec::new();
        for (_, value) in self.0.iter().filter(|(found, _)| *found == tag) {
            match *value {
                Value::Number(number) => all.push(number),
                Value::Bytes(mut packed) => all.extend(std::iter::from_fn(|| varint(&mut packed))),
            }
        }
        all
    }

    /// A bool.
    pub fn flag(&self, tag: u64) -> bool {
        self.number(tag) != 0
    }
}

/// A message that goes. Fields that have their zero are left out, as proto3 has it.
#[derive(Debug, Default, Clone)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty message.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// A message that is already written.
    pub const fn raw(bytes: Vec<u8>) -> Writer {
        Writer(bytes)
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push((number & 0x7f) as u8);
    }

    /// A number or a bool.
    pub fn number(mut self, tag: u64, number: impl Into<u64>) -> Writer {
        let number = number.into();
        if number != 0 {
            self.varint(tag << 3);
            self.varint(number);
        }
        self
    }

    /// A string or bytes.
    pub fn bytes(mut self, tag: u64, bytes: impl AsRef<[u8]>) -> Writer {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() {
            self.varint(tag << 3 | 2);
            self.varint(bytes.len() as u64);
            self.0.extend_from_slice(bytes);
        }
        self
    }

    /// A message inside this one, also when it is empty.
    pub fn message(mut self, tag: u64, inner: &Writer) -> Writer {
        self.varint(tag << 3 | 2);
        self.varint(inner.0.len() as u64);
        self.0.extend_from_slice(&inner.0);
        self
    }

    /// `google.protobuf.Timestamp`, of nanoseconds since 1970; left out when 0.
    pub fn time(self, tag: u64, nanoseconds: u64) -> Writer {
        let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        if nanoseconds == 0 {
            self
        } else {
            self.message(tag, &Writer::new().number(1, seconds).number(2, rest))
        }
    }

    /// `google.protobuf.Any`.
    pub fn any(self, tag: u64, type_url: &str, value: impl AsRef<[u8]>) -> Writer {
        self.message(tag, &Writer::new().bytes(1, type_url).bytes(2, value))
    }

    /// The message as it goes out.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_specification() {
        // The examples of protobuf.dev/programming-guides/encoding.
        assert_eq!(Writer::new().number(1, 150u32).finish(), [0x08, 0x96, 0x01]);
        assert_eq!(Writer::new().bytes(2, "testing").finish(), b"\x12\x07testing");
        let nested = Writer::new().message(3, &Writer::new().number(1, 150u32));
        assert_eq!(nested.finish(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes =
            Writer::new().number(1, u64::MAX).bytes(2, "a").bytes(2, "b").time(3, 5_000_000_007).finish();
        let message = Message::read(&bytes).unwrap();
        assert_eq!(message.number(1), u64::MAX);
        assert_eq!(message.all(2).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(message.text(2), "b");
        let time = Message::read(message.bytes(3)).unwrap();
        assert_eq!((time.number(1), time.number(2)), (5, 7));
        assert_eq!((message.text(9), message.flag(9)), ("", false));
    }

    #[test]
    fn messages_maps_and_lists_are_read() {
        let pair = |key, value| Writer::new().bytes(1, key).bytes(2, value);
        let bytes =
            Writer::new().message(1, &pair("a", "b")).message(1, &pair("c", "")).bytes(2, [1, 0x96, 1]);
        let bytes = bytes.number(2, 7u32).finish();
        let message = Message::read(&bytes).unwrap();
        assert_eq!(message.pairs(1).collect::<Vec<_>>(), [("a", "b"), ("c", "")]);
        assert_eq!((message.message(1).text(1), message.message(9).text(1)), ("c", ""));
        assert_eq!(message.numbers(2), [1, 150, 7]);
    }

    #[test]
    fn what_is_cut_off_or_garbage_is_no_message() {
        let bytes = Writer::new().bytes(1, "some text").number(2, 300u32).finish();
        for length in 1..bytes.len() {
            if length != 11 {
                assert!(Message::read(&bytes[..length]).is_none(), "{length}");
            }
        }
        assert!(Message::read(&[0xff; 12]).is_none());
        assert!(Message::read(&[0x0b]).is_none(), "groups are not read");
        assert!(Message::read(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_none());
    }
}
