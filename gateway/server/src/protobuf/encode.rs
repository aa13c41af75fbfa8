//! From JSON to protobuf, in one pass over the text: nothing is built in between.
//!
//! Fields are written in the order of the JSON, which any reader takes. A field of an inlined message is written as a
//! message with that one field; readers merge what comes several times.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::table::{Field, Form, Label, Message, json_schema};
use super::wire::{write_bytes, write_double, write_message, write_number};

/// Writes the fields of a JSON object.
///
/// # Errors
/// If the JSON doesn't fit the message.
pub(super) fn encode(message: &'static Message, json: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Fields { message, out }.deserialize(&mut deserializer)?;
    deserializer.end()
}

/// The fields of an object, as those of a message.
struct Fields<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of type {}", self.message.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(place) = map.next_key_seed(Name(self.message))? {
            match place {
                Some((path, field)) => within(self.out, path, |out| map.next_value_seed(Member { field, out }))?,
                // kind and apiVersion, which stand in the envelope.
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Writes inside the messages of these numbers.
fn within<T>(out: &mut Vec<u8>, path: &[u32], write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    match path {
        [] => write(out),
        [number, rest @ ..] => write_message(out, *number, |out| within(out, rest, write)),
    }
}

/// A field's name.
struct Name(&'static Message);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<(&'static [u32], &'static Field)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<(&'static [u32], &'static Field)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.by_name(name))
    }
}

/// What a field holds: one value, a list or a map.
struct Member<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { field, out } = self;
        match field.label {
            Label::Repeated | Label::Map => deserializer.deserialize_any(Member { field, out }),
            Label::Single | Label::Inline => {
                One { number: field.number, form: field.form, out }.deserialize(deserializer)
            }
        }
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list or map {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Field { number, form, .. } = *self.field;
        while list.next_element_seed(One { number, form, out: self.out })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        const KEY: u32 = 1;
        const VALUE: u32 = 2;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            write_message(self.out, self.field.number, |out| {
                write_bytes(out, KEY, key.as_bytes());
                map.next_value_seed(One { number: VALUE, form: self.field.form, out })
            })?;
        }
        Ok(())
    }
}

/// One value of a field.
struct One<'a> {
    number: u32,
    form: Form,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !matches!(self.form, Form::Raw) {
            return deserializer.deserialize_any(self);
        }
        let json = <&RawValue>::deserialize(deserializer)?.get();
        write_message(self.out, self.number, |out| {
            if json != "null" {
                write_bytes(out, 1, json.as_bytes());
            }
        });
        Ok(())
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of field {}", self.number)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        match self.form {
            Form::SchemaOrBoolean => write_message(self.out, self.number, |out| write_number(out, 1, value.into())),
            _ => write_number(self.out, self.number, value.into()),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match self.form {
            #[expect(clippy::cast_precision_loss, reason = "what is a double is one in JSON, too")]
            Form::Double => write_double(self.out, self.number, value as f64),
            Form::IntOrString => write_message(self.out, self.number, |out| {
                write_number(out, 1, 0);
                write_number(out, 2, value.cast_unsigned());
            }),
            Form::Quantity => return self.visit_str(&value.to_string()),
            _ => write_number(self.out, self.number, value.cast_unsigned()),
        }
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_i64(value.cast_signed())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        write_double(self.out, self.number, value);
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let Self { number, form, out } = self;
        match form {
            Form::Bytes => {
                let bytes = STANDARD.decode(text).map_err(|_| E::custom("not base64"))?;
                write_bytes(out, number, &bytes);
            }
            Form::Time | Form::MicroTime => {
                let at: Timestamp = text.parse().map_err(|_| E::custom("not a time"))?;
                write_message(out, number, |out| {
                    write_number(out, 1, at.as_second().cast_unsigned());
                    write_number(out, 2, i64::from(at.subsec_nanosecond()).cast_unsigned());
                });
            }
            Form::Quantity => write_message(out, number, |out| write_bytes(out, 1, text.as_bytes())),
            Form::IntOrString => write_message(out, number, |out| {
                write_number(out, 1, 1);
                write_number(out, 2, 0);
                write_bytes(out, 3, text.as_bytes());
            }),
            _ => write_bytes(out, number, text.as_bytes()),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Self { number, form, out } = self;
        let message = match form {
            Form::Message(message) => message.get(),
            Form::Schemas | Form::SchemaOrTexts => {
                return write_message(out, number, |out| {
                    write_message(out, 1, |out| Fields { message: json_schema(), out }.visit_map(map))
                });
            }
            Form::SchemaOrBoolean => {
                return write_message(out, number, |out| {
                    write_number(out, 1, 1);
                    write_message(out, 2, |out| Fields { message: json_schema(), out }.visit_map(map))
                });
            }
            _ => return Err(A::Error::custom("an object where none belongs")),
        };
        write_message(out, number, |out| Fields { message, out }.visit_map(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { number, form, out } = self;
        let (number_inside, schemas) = match form {
            Form::Texts => (1, false),
            Form::SchemaOrTexts => (2, false),
            Form::Schemas => (2, true),
            _ => return Err(A::Error::custom("a list where none belongs")),
        };
        write_message(out, number, |out| {
            if schemas {
                let message = json_schema();
                while list.next_element_seed(Inside { number: number_inside, message, out })?.is_some() {}
            } else {
                while let Some(text) = list.next_element::<Cow<'_, str>>()? {
                    write_bytes(out, number_inside, text.as_bytes());
                }
            }
            Ok(())
        })
    }
}

/// A message that is a list's element.
struct Inside<'a> {
    number: u32,
    message: &'static Message,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Inside<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let message = self.message;
        write_message(self.out, self.number, |out| Fields { message, out }.deserialize(deserializer))
    }
}
