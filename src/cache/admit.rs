//! Being written.
pub(super) async fn call(
    _inner: &super::Inner,
    _items: &[super::AdmissionItem],
    _is_memory_new: bool,
) -> Result<super::AdmissionRead, super::CacheError> {
    unimplemented!()
}
