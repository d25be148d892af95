//! Rotary positions on three axes (temporal, height, width) for text with images spliced in (the reference's `get_rope_index`).

use crate::error::ModelError;

/// Positions per axis and the position of the next token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    pub axes: [Vec<i32>; 3],
    pub next: i32,
}

/// Positions of `ids`, in which the images' pad tokens are already expanded.
///
/// Text advances all axes together. An image of grid `[t, h, w]` patches takes `t · h/merge · w/merge` pads whose positions are
/// its cell's coordinates past the position before it; text goes on after the largest of them.
///
/// # Errors
/// The pads do not match the grids.
pub fn rope_positions(
    ids: &[u32],
    image_token: Option<u32>,
    grids: &[[usize; 3]],
    merge: usize,
) -> Result<Positions, ModelError> {
    let mismatch = || {
        ModelError::Prompt(format!(
            "its image tokens do not match its {} images; give one image token an image",
            grids.len()
        ))
    };
    let mut axes = [(); 3].map(|()| Vec::with_capacity(ids.len()));
    let (mut base, mut i, mut grids) = (0i32, 0, grids.iter());
    while i < ids.len() {
        if Some(ids[i]) != image_token {
            axes.iter_mut().for_each(|axis| axis.push(base));
            (base, i) = (base + 1, i + 1);
            continue;
        }
        let &[t, h, w] = grids.next().ok_or_else(mismatch)?;
        let (h, w) = (h / merge.max(1), w / merge.max(1));
        let cells = t * h * w;
        if cells == 0 || !ids[i..].get(..cells).is_some_and(|run| run.iter().all(|&id| Some(id) == image_token)) {
            return Err(mismatch());
        }
        for cell in 0..cells {
            // A still image has one moment, so its temporal coordinate is 0.
            let at = [cell / (h * w), cell / w % h, cell % w];
            axes.iter_mut().zip(at).for_each(|(axis, c)| axis.push(base + c as i32));
        }
        (base, i) = (base + t.max(h).max(w) as i32, i + cells);
    }
    if grids.next().is_some() {
        return Err(mismatch());
    }
    Ok(Positions { axes, next: base })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_advances_text_by_its_longest_side() {
        let ids = [1, 9, 9, 9, 9, 9, 9, 2];
        let p = rope_positions(&ids, Some(9), &[[1, 4, 6]], 2).unwrap();
        assert_eq!(p.axes[0], [0, 1, 1, 1, 1, 1, 1, 4]);
        assert_eq!(p.axes[1], [0, 1, 1, 1, 2, 2, 2, 4]);
        assert_eq!(p.axes[2], [0, 1, 2, 3, 1, 2, 3, 4]);
        assert_eq!(p.next, 5);
    }

    #[test]
    fn pads_and_grids_must_agree() {
        assert!(rope_positions(&[9, 9, 1], Some(9), &[[1, 4, 6]], 2).is_err());
        assert!(rope_positions(&[9], Some(9), &[], 2).is_err());
        assert!(rope_positions(&[1], Some(9), &[[1, 2, 2]], 2).is_err());
    }
}
