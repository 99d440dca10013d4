//! FNV-1a over constant tables: a model is refused by name when the table it was trained for moved.

/// 32-bit FNV-1a, evaluated at compile time.
#[derive(Clone, Copy)]
pub(crate) struct Fnv(u32);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Fnv(0x811c_9dc5)
    }

    /// Takes the bytes of `text` and a terminator, so that neighbouring texts cannot run together.
    pub(crate) const fn text(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut hash = self;
        let mut index = 0;
        while index < bytes.len() {
            hash = hash.byte(bytes[index]);
            index += 1;
        }
        hash.byte(0xff)
    }

    /// Takes the eight little-endian bytes of `number`.
    pub(crate) const fn number(self, number: u64) -> Self {
        let bytes = number.to_le_bytes();
        let mut hash = self;
        let mut index = 0;
        while index < bytes.len() {
            hash = hash.byte(bytes[index]);
            index += 1;
        }
        hash
    }

    const fn byte(self, byte: u8) -> Self {
        Fnv((self.0 ^ byte as u32).wrapping_mul(0x0100_0193))
    }

    pub(crate) const fn finish(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Fnv;

    #[test]
    fn published_vector() {
        // FNV-1a of "a" is 0xe40c292c; `text` adds the terminator to it.
        assert_eq!(Fnv::new().byte(b'a').finish(), 0xe40c_292c);
    }

    #[test]
    fn borders_between_texts_count() {
        assert_ne!(
            Fnv::new().text("ab").text("c").finish(),
            Fnv::new().text("a").text("bc").finish()
        );
    }
}
