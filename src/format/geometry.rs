//! Offset arithmetic between plaintext and backing file. Owns every constant of the layout; knows no cryptography.

/// Size of a block, a header page and the unit of alignment, in bytes.
pub const PAGE: usize = 4096;
/// Clear bytes in front of a block's ciphertext.
pub const BLOCK_HEADER: usize = 48;
/// Plaintext bytes of one block.
pub const PLAIN: usize = PAGE - BLOCK_HEADER;

/// What a backing length says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// No data block: plaintext size 0. `header` tells whether the header area may hold a header (backing length > 0).
    Empty { header: bool },
    /// The size stands in the length.
    Quiet { size: u64 },
    /// `blocks` whole blocks (≥ 1); the size is `(blocks-1)·PLAIN + valid_len` of the last one.
    Growing { blocks: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("impossible backing length {0}")]
pub struct BadLength(pub u64);

/// Offsets of one volume: `header_pages` (H ≥ 1) per slot, two slots, then blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub header_pages: u32,
}

impl Geometry {
    /// Bytes of one header slot.
    pub fn slot_len(&self) -> usize {
        self.header_pages as usize * PAGE
    }
    /// Backing offset of block 0: `2·H·4096`.
    pub fn data_start(&self) -> u64 {
        2 * self.slot_len() as u64
    }
    /// Largest plaintext size whose backing length fits in an i64.
    pub fn max_size(&self) -> u64 {
        todo!()
    }
    pub fn decode(&self, backing_len: u64) -> Result<Length, BadLength> {
        let _ = backing_len;
        todo!()
    }
    /// Backing length of a quiet file of `size` bytes (> 0).
    pub fn quiet_len(&self, size: u64) -> u64 {
        let _ = size;
        todo!()
    }
    /// Backing length of a growing file of `blocks` blocks.
    pub fn growing_len(&self, blocks: u64) -> u64 {
        let _ = blocks;
        todo!()
    }
    /// Backing offset of block `index`.
    pub fn block_offset(&self, index: u64) -> u64 {
        let _ = index;
        todo!()
    }
}

/// Number of blocks that hold `size` plaintext bytes: ⌈size/PLAIN⌉.
pub fn blocks_for(size: u64) -> u64 {
    let _ = size;
    todo!()
}

/// Block index and offset inside it of a plaintext offset.
pub fn locate(offset: u64) -> (u64, usize) {
    let _ = offset;
    todo!()
}
