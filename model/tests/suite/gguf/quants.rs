//! Every element type against candle's dequantisation, bit for bit, on blocks of random bits.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use quorum_core::seed::Stream;
use quorum_model::gguf::Quant;

const BLOCKS: usize = 64;

/// ggml's number, our type, candle's, and where a block has float16 numbers.
pub const TYPES: [(u32, Quant, Option<GgmlDType>, &[usize]); 14] = [
    (0, Quant::F32, Some(GgmlDType::F32), &[]),
    (1, Quant::F16, Some(GgmlDType::F16), &[0]),
    (30, Quant::BF16, Some(GgmlDType::BF16), &[]),
    (2, Quant::Q4_0, Some(GgmlDType::Q4_0), &[0]),
    (3, Quant::Q4_1, Some(GgmlDType::Q4_1), &[0, 2]),
    (6, Quant::Q5_0, Some(GgmlDType::Q5_0), &[0]),
    (7, Quant::Q5_1, Some(GgmlDType::Q5_1), &[0, 2]),
    (8, Quant::Q8_0, Some(GgmlDType::Q8_0), &[0]),
    (10, Quant::Q2_K, Some(GgmlDType::Q2K), &[80, 82]),
    (11, Quant::Q3_K, Some(GgmlDType::Q3K), &[108]),
    (12, Quant::Q4_K, Some(GgmlDType::Q4K), &[0, 2]),
    (13, Quant::Q5_K, Some(GgmlDType::Q5K), &[0, 2]),
    (14, Quant::Q6_K, Some(GgmlDType::Q6K), &[208]),
    // Candle does not read this one.
    (20, Quant::IQ4_NL, None, &[0]),
];

/// Random blocks whose scales are finite and of moderate size.
pub fn blocks(quant: Quant, halves: &[usize], count: usize) -> Vec<u8> {
    let mut random = Stream::named(&format!("blocks of {quant}"), &[7]);
    let mut bytes: Vec<u8> = (0..(count * quant.bytes()) as u64).map(|i| (random.uniform(i) * 256.0) as u8).collect();
    for block in bytes.chunks_mut(quant.bytes()) {
        for &at in halves {
            // Exponent 8 to 15 of 31: between 2^-7 and 2.
            block[at + 1] = block[at + 1] & 0x9f | 0x20;
        }
        match quant {
            Quant::F32 => block[3] = block[3] & 0x83 | 0x3c,
            Quant::BF16 => block[1] = block[1] & 0x83 | 0x3c,
            _ => {}
        }
    }
    bytes
}

pub fn dequantize(quant: Quant, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / quant.bytes() * quant.block()];
    quant.dequantize(bytes, &mut out);
    out
}

#[test]
fn every_type_equals_candles_bit_for_bit() {
    for (id, quant, candle, halves) in TYPES {
        assert_eq!(Quant::from_id(id).unwrap(), quant);
        let bytes = blocks(quant, halves, BLOCKS);
        let ours = dequantize(quant, &bytes);
        assert!(ours.iter().all(|x| x.is_finite()), "{quant}");
        let Some(candle) = candle else { continue };
        assert_eq!((candle.block_size(), candle.type_size()), (quant.block(), quant.bytes()), "{quant}");
        let tensor = qtensor_from_ggml(candle, &bytes, vec![ours.len()], &Device::Cpu).unwrap();
        let theirs: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{quant}: ours {:?} theirs {:?}", ours, theirs);
    }
}

#[test]
fn iq4_nl_equals_the_values_of_the_gguf_package() {
    // Scale 1 and the bytes 0x00, 0x11, … 0xff.
    let block: Vec<u8> = [0x00, 0x3c].into_iter().chain((0..16).map(|i| i * 17)).collect();
    let half = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let expected: Vec<f32> = half.iter().chain(&half).map(|&x| x as f32).collect();
    assert_eq!(dequantize(Quant::IQ4_NL, &block), expected);
}
