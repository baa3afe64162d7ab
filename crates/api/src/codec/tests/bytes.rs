//! Builds messages byte by byte from field numbers, knowing nothing of our own codec: what fixtures are made of.

/// A message under construction.
#[derive(Clone, Default)]
pub(crate) struct Wire(pub(crate) Vec<u8>);

impl Wire {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn raw_varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    /// A number, bool or enum.
    pub(crate) fn number(self, field: u64, value: u64) -> Self {
        self.raw_varint(field << 3).raw_varint(value)
    }

    /// Bytes, or the content of a message.
    pub(crate) fn bytes(self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut with = self.raw_varint(field << 3 | 2).raw_varint(value.len() as u64);
        with.0.extend_from_slice(value);
        with
    }

    pub(crate) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value)
    }

    pub(crate) fn message(self, field: u64, value: Wire) -> Self {
        self.bytes(field, value.0)
    }

    /// Repeated numbers as proto3 packs them.
    pub(crate) fn packed(self, field: u64, values: &[u64]) -> Self {
        let content = values.iter().fold(Wire::new(), |wire, value| wire.raw_varint(*value));
        self.message(field, content)
    }
}
