//! Bytes that both ends can make and check: a cheap generator and a checksum.

use std::io::{self, Read, Write};

/// A reproducible stream of bytes (xorshift64*).
pub struct Pattern(u64);

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A checksum that notices lost, doubled and reordered bytes (FNV-1a over 8-byte words, the length mixed in).
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    hash: u64,
    pub bytes: u64,
    tail: [u8; 8],
    filled: usize,
}

impl Default for Sum {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, bytes: 0, tail: [0; 8], filled: 0 }
    }
}

impl Sum {
    pub fn take(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.filled == 0 && bytes.len() >= 8 {
                let (words, rest) = bytes.split_at(bytes.len() / 8 * 8);
                for word in words.chunks_exact(8) {
                    self.word(u64::from_le_bytes(word.try_into().expect("8 bytes")));
                }
                bytes = rest;
            } else {
                let taken = bytes.len().min(8 - self.filled);
                self.tail[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken;
                bytes = &bytes[taken..];
                if self.filled == 8 {
                    self.word(u64::from_le_bytes(self.tail));
                    self.filled = 0;
                }
            }
        }
    }

    fn word(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    }

    /// The sum of everything taken.
    pub fn value(mut self) -> u64 {
        self.tail[self.filled..].fill(0);
        let tail = u64::from_le_bytes(self.tail);
        self.word(tail);
        self.word(self.bytes);
        self.hash
    }
}

/// Sends `bytes` of the pattern; the sum of what was sent.
pub fn send(stream: &mut impl Write, seed: u64, bytes: u64) -> io::Result<Sum> {
    let (mut pattern, mut sum, mut left) = (Pattern::new(seed), Sum::default(), bytes);
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        pattern.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        sum.take(&buffer[..length]);
        left -= length as u64;
    }
    Ok(sum)
}

/// Reads to the end; the sum of what came.
pub fn receive(stream: &mut impl Read) -> io::Result<Sum> {
    let mut sum = Sum::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(sum),
            Ok(length) => sum.take(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
