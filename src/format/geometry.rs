//! Offset arithmetic between plaintext and backing file. Owns every constant of the layout; knows no cryptography.
//! Total: no input, however wrong, overflows; what would is saturated.

/// Size of a block, a header page and the unit of alignment, in bytes.
pub const PAGE: usize = 4096;
/// Clear bytes in front of a block's ciphertext.
pub const BLOCK_HEADER: usize = 48;
/// Plaintext bytes of one block.
pub const PLAIN: usize = PAGE - BLOCK_HEADER;
/// Largest number of pages per header slot.
pub const MAX_HEADER_PAGES: u32 = 64;

const PAGE_U64: u64 = PAGE as u64;
const PLAIN_U64: u64 = PLAIN as u64;

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
        2 * PAGE_U64 * u64::from(self.header_pages)
    }
    /// Largest plaintext size whose backing length fits in an i64.
    pub fn max_size(&self) -> u64 {
        let room = i64::MAX as u64 - self.data_start();
        let (pages, rest) = (room / PAGE_U64, room % PAGE_U64);
        // `pages` blocks and a tail of `rest`; with no room for a tail, one block less and the longest tail: the same sum.
        (pages - 1) * PLAIN_U64 + rest.min(PLAIN_U64)
    }
    pub fn decode(&self, backing_len: u64) -> Result<Length, BadLength> {
        if backing_len <= self.data_start() {
            return Ok(Length::Empty { header: backing_len > 0 });
        }
        let data = backing_len - self.data_start();
        match (data / PAGE_U64, data % PAGE_U64) {
            (0, _) => Err(BadLength(backing_len)),
            (blocks, 0) => Ok(Length::Growing { blocks }),
            (blocks, tail) if tail <= PLAIN_U64 => Ok(Length::Quiet { size: (blocks - 1) * PLAIN_U64 + tail }),
            _ => Err(BadLength(backing_len)),
        }
    }
    /// The plaintext size that `stat` shows for an impossible backing length: that of its whole blocks.
    pub fn clamp(&self, bad: BadLength) -> u64 {
        bad.0.saturating_sub(self.data_start()) / PAGE_U64 * PLAIN_U64
    }
    /// Backing length of a quiet file of `size` bytes (> 0). Size 0 gives the length of a bare header area.
    pub fn quiet_len(&self, size: u64) -> u64 {
        let blocks = blocks_for(size);
        if blocks == 0 {
            return self.data_start();
        }
        let tail = size - (blocks - 1) * PLAIN_U64;
        self.growing_len(blocks).saturating_add(tail)
    }
    /// Backing length of a growing file of `blocks` blocks.
    pub fn growing_len(&self, blocks: u64) -> u64 {
        self.block_offset(blocks)
    }
    /// Backing offset of block `index`.
    pub fn block_offset(&self, index: u64) -> u64 {
        index.saturating_mul(PAGE_U64).saturating_add(self.data_start())
    }
}

/// Plaintext size of a growing file whose last block says `valid_len`; 0 blocks are size 0.
pub fn growing_size(blocks: u64, valid_len: u16) -> u64 {
    match blocks.checked_sub(1) {
        None => 0,
        Some(full) => full.saturating_mul(PLAIN_U64).saturating_add(u64::from(valid_len)),
    }
}

/// Number of blocks that hold `size` plaintext bytes: ⌈size/PLAIN⌉.
pub fn blocks_for(size: u64) -> u64 {
    size.div_ceil(PLAIN_U64)
}

/// Block index and offset inside it of a plaintext offset.
pub fn locate(offset: u64) -> (u64, usize) {
    (offset / PLAIN_U64, (offset % PLAIN_U64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Geometry = Geometry { header_pages: 1 };

    #[test]
    fn lengths_at_the_edges() {
        let cases = [
            (0, Ok(Length::Empty { header: false })),
            (1, Ok(Length::Empty { header: true })),
            (4096, Ok(Length::Empty { header: true })),
            (8192, Ok(Length::Empty { header: true })),
            (8193, Err(BadLength(8193))),
            (8192 + 4048, Err(BadLength(8192 + 4048))),
            (8192 + 4095, Err(BadLength(8192 + 4095))),
            (8192 + 4096, Ok(Length::Growing { blocks: 1 })),
            (8192 + 4097, Ok(Length::Quiet { size: 1 })),
            (8192 + 4096 + 4048, Ok(Length::Quiet { size: 4048 })),
            (8192 + 4096 + 4049, Err(BadLength(8192 + 4096 + 4049))),
            (8192 + 8192, Ok(Length::Growing { blocks: 2 })),
            (8192 + 8193, Ok(Length::Quiet { size: 4049 })),
        ];
        for (len, expected) in cases {
            assert_eq!(ONE.decode(len), expected, "{len}");
        }
        assert_eq!(ONE.quiet_len(0), 8192);
        assert_eq!(ONE.quiet_len(1), 8192 + 4097);
        assert_eq!(ONE.quiet_len(4048), 8192 + 4096 + 4048);
        assert_eq!(ONE.quiet_len(4049), 8192 + 8192 + 1);
        assert_eq!(ONE.growing_len(1), 8192 + 4096);
        assert_eq!(locate(4047), (0, 4047));
        assert_eq!(locate(4048), (1, 0));
        assert_eq!(growing_size(0, 7), 0);
        assert_eq!(growing_size(2, 7), 4055);
    }

    #[test]
    fn the_largest_size_fits_and_the_next_does_not() {
        for header_pages in 1..=MAX_HEADER_PAGES {
            let g = Geometry { header_pages };
            assert!(g.quiet_len(g.max_size()) <= i64::MAX as u64, "{header_pages}");
            assert!(g.quiet_len(g.max_size() + 1) > i64::MAX as u64, "{header_pages}");
        }
    }

    proptest! {
        #[test]
        fn quiet_lengths_decode_to_their_size(pages in 1..=MAX_HEADER_PAGES, size in 1..=i64::MAX as u64 / 2) {
            let g = Geometry { header_pages: pages };
            prop_assert_eq!(g.decode(g.quiet_len(size)), Ok(Length::Quiet { size }));
            prop_assert!(g.quiet_len(size) < g.quiet_len(size + 1), "monotonic");
            prop_assert!(g.growing_len(blocks_for(size)) < g.quiet_len(size));
            prop_assert!(g.quiet_len(size) < g.growing_len(blocks_for(size) + 1));
        }

        #[test]
        fn growing_lengths_decode_to_their_blocks(pages in 1..=MAX_HEADER_PAGES, blocks in 1..1u64 << 50) {
            let g = Geometry { header_pages: pages };
            prop_assert_eq!(g.decode(g.growing_len(blocks)), Ok(Length::Growing { blocks }));
        }

        /// Any u64 is answered, and what is accepted is the length that the answer encodes to.
        #[test]
        fn decoding_is_total_and_canonical(pages in 1..=MAX_HEADER_PAGES, len in any::<u64>(), low in 0u64..100_000) {
            let g = Geometry { header_pages: pages };
            for len in [len, low] {
                match g.decode(len) {
                    Ok(Length::Empty { header }) => prop_assert_eq!(header, len > 0 && len <= g.data_start()),
                    Ok(Length::Quiet { size }) => prop_assert_eq!(g.quiet_len(size), len),
                    Ok(Length::Growing { blocks }) => prop_assert_eq!(g.growing_len(blocks), len),
                    Err(bad) => prop_assert!(g.quiet_len(g.clamp(bad)) <= len),
                }
            }
        }

        #[test]
        fn arithmetic_never_overflows(pages in any::<u32>(), x in any::<u64>()) {
            let g = Geometry { header_pages: pages };
            let _ = (g.max_size(), g.quiet_len(x), g.growing_len(x), g.block_offset(x), g.decode(x), g.clamp(BadLength(x)));
            let _ = (growing_size(x, u16::MAX), blocks_for(x));
            let (block, inside) = locate(x);
            prop_assert_eq!(u128::from(block) * PLAIN as u128 + inside as u128, u128::from(x));
        }
    }
}
