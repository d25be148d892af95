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

/// Files made by Pillow, by name; the expectation is what Pillow makes of them.
fn differs_from_pillow(file: &str) -> u8 {
    let ours = decode(&fixture(file), &Limits::default()).unwrap();
    let name = format!("{}.expected.png", file.replace('.', "_"));
    let theirs = image::load_from_memory(&fixture(&name)).unwrap().to_rgb8();
    assert_eq!(ours.dimensions(), theirs.dimensions(), "{file}");
    assert_eq!(dimensions(&fixture(file), &Limits::default()), Ok(theirs.dimensions()), "{file}");
    ours.as_raw().iter().zip(theirs.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn the_other_formats_equal_pillow() {
    let exact =
        ["oriented.png", "lossless.webp", "alpha.webp", "oriented.webp", "animated.webp", "still.gif", "clear.gif"];
    for file in exact.into_iter().chain(["animated.gif", "rgb.bmp", "palette.bmp", "one_bit.bmp"]) {
        assert_eq!(differs_from_pillow(file), 0, "{file}");
    }
}

#[test]
fn lossy_files_are_near_pillow_inks_and_inverted_inks_included() {
    for file in ["progressive.jpg", "grey.jpg", "cmyk.jpg", "cmyk_plain.jpg", "ycck.jpg", "lossy.webp"] {
        let difference = differs_from_pillow(file);
        println!("{file} {difference}");
        assert!(difference <= 4, "{file} {difference}");
    }
}

#[test]
fn a_jpeg_of_many_scans_is_refused_before_decoding() {
    let bytes = fixture("progressive.jpg");
    let scans = jpeg_scans(&bytes).unwrap();
    assert!((6..=12).contains(&scans), "{scans}");
    let exact = Limits { max_pixels: 37 * 22, ..Limits::default() };
    assert!(decode(&bytes, &exact).is_ok());
    // The last scan again and again: a few bytes that cost a whole pass each.
    let last = bytes.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let (head, scan) = (&bytes[..last], &bytes[last..bytes.len() - 2]);
    let many = [head, &scan.repeat(40), &[0xff, 0xd9]].concat();
    assert!(matches!(decode(&many, &exact), Err(DecodeError::TooMuchWork { scans: 40.., .. })));
    assert!(decode(&many, &Limits::default()).is_ok());
}

#[test]
fn a_file_that_is_cut_off_is_unreadable_at_every_length() {
    for name in ["rgb.png", "progressive.jpg", "rotated.jpg", "lossless.webp", "lossy.webp", "still.gif"] {
        let whole = fixture(name);
        for length in (0..whole.len() * 9 / 10).step_by(3) {
            let cut = decode(&whole[..length], &Limits::default());
            assert!(matches!(cut, Err(DecodeError::Unreadable(_))), "{name} {length} of {}", whole.len());
        }
    }
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
    let old = ["rgb.png", "rgba.png", "palette_transparent.png", "grey16.png", "rotated.jpg"];
    for name in
        old.into_iter().chain(["cmyk.jpg", "progressive.jpg", "lossy.webp", "alpha.webp", "clear.gif", "palette.bmp"])
    {
        let whole = fixture(name);
        for cut in 0..whole.len().min(400) {
            let _ = decode(&whole[..cut], &Limits::default());
            let mut flipped = whole.clone();
            flipped[cut] ^= 0x5a;
            let _ = decode(&flipped, &Limits::default());
        }
    }
    for bytes in [&b""[..], b"GIF89a", b"BM", b"RIFF\x04\0\0\0WEBP", b"not an image at all"] {
        assert!(matches!(decode(bytes, &Limits::default()), Err(DecodeError::Unreadable(_))));
    }
}
