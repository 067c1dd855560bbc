//! Chance from a seed. Our own few lines, so that a seed means the same world for good, whatever a
//! library's next version does.

/// xoshiro256**, seeded by SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice([u64; 4]);

/// One step of SplitMix64: also used to spread a number over many bits.
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 32 bytes that look like a digest of these numbers.
pub fn digest_of(a: u64, b: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut state = mix(a ^ mix(b));
    for part in bytes.chunks_exact_mut(8) {
        state = mix(state);
        part.copy_from_slice(&state.to_be_bytes());
    }
    bytes
}

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Self {
        let one = mix(seed);
        let two = mix(one);
        let three = mix(two);
        Self([one, two, three, mix(three) | 1])
    }
    /// 64 random bits.
    pub fn draw(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }
    /// True `n` times in 1,000.
    pub fn permille(&mut self, n: u64) -> bool {
        self.draw() % 1_000 < n
    }
    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.draw().is_multiple_of(n)
    }
    /// Short mostly, long now and then: a delay up to `high` that is spread over its orders of magnitude.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).max(1);
        let bits = 64 - span.leading_zeros() as u64;
        let shift = self.between(0, bits);
        low + ((self.draw() % (span + 1)) >> shift.min(63))
    }
    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get((self.draw() % of.len() as u64) as usize) }
    }
    /// 16 random bytes.
    pub fn bytes16(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (a, b) = bytes.split_at_mut(8);
        a.copy_from_slice(&self.draw().to_be_bytes());
        b.copy_from_slice(&self.draw().to_be_bytes());
        bytes
    }
}
