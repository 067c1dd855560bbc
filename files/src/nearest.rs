//! What was meant by a name that nobody knows.

/// What is longer is no typo of a name: comparing is quadratic in the length.
const MAX_COMPARED_BYTES: usize = 255;
/// The most known names that one is compared with.
const MAX_COMPARED: usize = 10_000;

/// The known name that is nearest to an unknown one, if any is near.
pub fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if name.len() > MAX_COMPARED_BYTES {
        return None;
    }
    known
        .into_iter()
        .take(MAX_COMPARED)
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= name.len().max(candidate.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
