//! A parsed document before anything is known of it: keys in order, duplicates included.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// A value of JSON.
#[derive(Debug)]
pub(super) enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Raw>),
    Object(Vec<Entry>),
}

/// A key, the line it stands in (0 if that isn't known), and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub line: u64,
    pub value: Raw,
}

impl Raw {
    /// The field of this name; the last one if there are several.
    pub fn get(&self, key: &str) -> Option<&Raw> {
        let Self::Object(entries) = self else { return None };
        entries.iter().rev().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// What Go's error texts call it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }
}

impl From<Value> for Raw {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(value) => Self::Number(value),
            Value::String(value) => Self::String(value),
            Value::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Object(fields) => Self::Object(
                fields.into_iter().map(|(key, value)| Entry { key, line: 0, value: Self::from(value) }).collect(),
            ),
        }
    }
}

impl From<Raw> for Value {
    /// The last of several equal keys wins.
    fn from(raw: Raw) -> Self {
        match raw {
            Raw::Null => Self::Null,
            Raw::Bool(value) => Self::Bool(value),
            Raw::Number(value) => Self::Number(value),
            Raw::String(value) => Self::String(value),
            Raw::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Raw::Object(entries) => {
                Self::Object(entries.into_iter().map(|entry| (entry.key, Self::from(entry.value))).collect())
            }
        }
    }
}

/// How a format hands over a key.
pub(super) trait Key: DeserializeOwned {
    /// The key and its line.
    fn split(self) -> (String, u64);
}

impl Key for String {
    fn split(self) -> (String, u64) {
        (self, 0)
    }
}

/// A [`Raw`] whose keys come as `K`.
pub(super) struct Tree<K>(pub Raw, PhantomData<K>);

impl<'de, K: Key> Deserialize<'de> for Tree<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Seed::<K>(PhantomData).deserialize(deserializer).map(|raw| Self(raw, PhantomData))
    }
}

struct Seed<K>(PhantomData<K>);

impl<'de, K: Key> DeserializeSeed<'de> for Seed<K> {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Key> Visitor<'de> for Seed<K> {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Number::from_f64(value).map_or(Raw::Null, Raw::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Seed::<K>(PhantomData))? {
            items.push(item);
        }
        Ok(Raw::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<K>()? {
            let (key, line) = key.split();
            let value = access.next_value_seed(Seed::<K>(PhantomData))?;
            entries.push(Entry { key, line, value });
        }
        Ok(Raw::Object(entries))
    }
}
