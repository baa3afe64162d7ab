//! Finds fields that a message has and its schema has not. prost drops them silently, which for a policy could
//! mean less than its author wrote.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// A message's fields.
pub(super) type Schema = &'static [(u32, Field)];

/// What a field holds.
pub(super) enum Field {
    /// A number, text or bytes.
    Plain,
    /// A message, by its name in errors.
    Message(&'static str, Schema),
}

/// Checks `message` and the messages in it against `schema`. The error says where what was found.
pub(super) fn unknown_field(mut message: Bytes, schema: Schema) -> Result<(), String> {
    while message.has_remaining() {
        let (number, wire_type) = decode_key(&mut message).map_err(|error| error.to_string())?;
        let Some((_, field)) = schema.iter().find(|(known, _)| *known == number) else {
            return Err(format!("unknown field {number}"));
        };
        match field {
            Field::Message(name, inner) if wire_type == WireType::LengthDelimited => {
                let length = decode_varint(&mut message).map_err(|error| error.to_string())?;
                let length = usize::try_from(length)
                    .ok()
                    .filter(|length| *length <= message.remaining())
                    .ok_or_else(|| format!("{name}: cut short"))?;
                unknown_field(message.split_to(length), inner).map_err(|found| format!("{name}: {found}"))?;
            }
            Field::Plain | Field::Message(..) => {
                skip_field(wire_type, number, &mut message, DecodeContext::default())
                    .map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(())
}
