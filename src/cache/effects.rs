//! Being written.
pub(super) async fn call(
    _inner: &super::Inner,
    _effects: &crate::effects::BatchEffects,
) -> Result<bool, super::CacheError> {
    unimplemented!()
}
