//! Where a value is read into: memory of the caller's, so that a value is copied once, out of the page cache.

/// Memory for one value.
pub trait Buffer {
    /// Room for exactly `bytes`, whatever it held before; `None` where it can't hold so many.
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]>;
}

impl Buffer for Vec<u8> {
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        // Only what grows is zeroed, so a caller that keeps its buffer pays nothing.
        self.resize(bytes, 0);
        Some(self)
    }
}

/// Memory that can't grow, such as that of a caller in another language.
#[derive(Debug)]
pub struct FixedBuffer<'a> {
    memory: &'a mut [u8],
    wanted_bytes: usize,
}

impl<'a> FixedBuffer<'a> {
    /// All of `memory`.
    pub fn new(memory: &'a mut [u8]) -> FixedBuffer<'a> {
        FixedBuffer { memory, wanted_bytes: 0 }
    }

    /// Size of the value that was read, or of the one that there was no room for.
    pub fn wanted_bytes(&self) -> usize {
        self.wanted_bytes
    }

    /// Whether the value did not fit, and was not read.
    pub fn is_too_small(&self) -> bool {
        self.wanted_bytes > self.memory.len()
    }
}

impl Buffer for FixedBuffer<'_> {
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.wanted_bytes = bytes;
        self.memory.get_mut(..bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_buffer_says_what_it_lacks() {
        let mut memory = [7; 4];
        let mut buffer = FixedBuffer::new(&mut memory);
        assert_eq!(buffer.room(3).unwrap().len(), 3);
        assert!(!buffer.is_too_small());
        assert_eq!(buffer.room(4).unwrap().len(), 4);
        assert!(buffer.room(5).is_none() && buffer.is_too_small());
        assert_eq!(buffer.wanted_bytes(), 5);
    }
}
