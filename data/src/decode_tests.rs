//! Decoding against what Pillow makes of the same files (`tests/fixtures/data_images`).

use super::*;
use std::fs;
use std::path::PathBuf;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/data_images").join(name)).unwrap()
}

fn largest_difference(stem: &str, extension: &str) -> u8 {
    let ours = decode(&fixture(&format!("{stem}.{extension}")), &Limits::default()).unwrap();
    let theirs = image::load_from_memory(&fixture(&format!("{stem}.expected.png"))).unwrap().to_rgb8();
    assert_eq!(ours.dimensions(), theirs.dimensions(), "{stem}");
    ours.as_raw().iter().zip(theirs.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn every_kind_of_png_equals_pillow() {
    for stem in ["rgb", "rgba", "grey", "grey_alpha", "grey16", "rgb16", "palette", "palette_transparent", "one_bit"] {
        assert_eq!(largest_difference(stem, "png"), 0, "{stem}");
    }
}

#[test]
fn a_jpeg_is_turned_by_its_exif_entry_and_near_pillow() {
    assert!(largest_difference("rotated", "jpg") <= 3);
}

#[test]
fn limits_are_kept_and_named() {
    let bytes = fixture("rgb.png");
    let few_pixels = Limits { max_pixels: 53, ..Limits::default() };
    assert_eq!(decode(&bytes, &few_pixels), Err(DecodeError::TooManyPixels { width: 9, height: 6, max: 53 }));
    assert!(decode(&bytes, &Limits { max_pixels: 54, ..Limits::default() }).is_ok());
    let few_bytes = Limits { max_bytes: 10, ..Limits::default() };
    assert!(decode(&bytes, &few_bytes).unwrap_err().to_string().contains("data.max_image_bytes = 10"));
    assert!(check_header(&bytes, &few_pixels).is_err());
}

#[test]
fn a_header_that_promises_a_huge_image_is_refused_before_allocation() {
    let mut bytes = fixture("rgb.png");
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let error = decode(&bytes, &Limits::default()).unwrap_err();
    assert!(matches!(error, DecodeError::TooManyPixels { .. } | DecodeError::Unreadable(_)), "{error}");
}

#[test]
fn damaged_bytes_are_an_error_and_never_a_panic() {
    for name in ["rgb.png", "rgba.png", "palette_transparent.png", "grey16.png", "rotated.jpg"] {
        let whole = fixture(name);
        for cut in 0..whole.len().min(400) {
            let _ = decode(&whole[..cut], &Limits::default());
            let mut flipped = whole.clone();
            flipped[cut] ^= 0x5a;
            let _ = decode(&flipped, &Limits::default());
        }
    }
    for bytes in [&b""[..], b"GIF89a", b"not an image at all"] {
        assert!(matches!(decode(bytes, &Limits::default()), Err(DecodeError::Unreadable(_))));
    }
}
