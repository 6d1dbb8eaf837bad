//! Being written.
pub(super) async fn call(_inner: &super::Inner, _items: &[super::SettleItem]) -> Result<(), super::CacheError> {
    unimplemented!()
}
