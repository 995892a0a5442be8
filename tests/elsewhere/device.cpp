// A device that is none: its tensors lie in the memory of the CPU and are computed there, but PyTorch takes them for
// tensors of a device of its own. As on a GPU, an operation of its tensors with tensors of the CPU is an error, and
// whoever reads a number waits for the device, which is counted. Where there is no GPU, this shows what would fail on one.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <set>

namespace {

using at::Tensor;
constexpr auto kElsewhere = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kElsewhere, 0);
const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);

std::atomic<int64_t> waits{0};
thread_local bool within_an_operation = false;  // its own copies to the CPU are not those of whoever called it

// --- What PyTorch asks of every device

struct Memory final : c10::Allocator {
  static void release(void* memory) { std::free(memory); }
  c10::DataPtr allocate(size_t size) override {
    void* memory = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
    return {memory, memory, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(kElsewhere, &memory)

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kElsewhere; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Random final : at::CPUGeneratorImpl {
  Random() {
    device_ = kDevice;
    key_set_ = keys;
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = at::make_generator<Random>();
    return generator;
  }
};
const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

// --- Operations on memory

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(dtype));
}

const Tensor& resize(const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (self.sizes() == size) return self;  // also a view that is not contiguous
  const size_t wanted = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (wanted > storage->nbytes()) {
    auto larger = memory.allocate(wanted);
    if (storage->nbytes()) memory.copy_data(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(wanted);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) { return at::native::set_(self, source); }

Tensor& set_part_of_storage(Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                            c10::IntArrayRef stride) {
  return at::cpu::set_(self, source, offset, size, stride);
}

// The same memory, as a tensor of the CPU.
Tensor on_cpu(const Tensor& self) {
  if (!self.is_privateuseone()) return self;
  auto* start = static_cast<char*>(self.storage().mutable_data());
  if (start) start += self.storage_offset() * self.itemsize();
  const auto options = self.options().device(at::kCPU).requires_grad(false);
  Tensor same = at::from_blob(start, self.sizes(), self.strides(), options);
  same._set_conj(self.is_conj());
  same._set_neg(self.is_neg());
  return same;
}

Tensor copy_from(const Tensor& self, const Tensor& target, bool) {
  if (!target.is_privateuseone() && !within_an_operation) waits++;
  on_cpu(target).copy_(on_cpu(self));
  return target;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& target) {
  target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar number(const Tensor& self) {
  waits++;
  return at::native::_local_scalar_dense_cpu(on_cpu(self));
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                        std::optional<double>, bool) {
  return 0;  // by single operations, not fused
}

// --- Everything else is computed on the CPU, once it is sure that nothing of the CPU is among it

using Tensors = std::vector<Tensor>;

void take(const c10::IValue& argument, Tensors& tensors) {
  if (argument.isTensor() && argument.toTensor().defined()) tensors.push_back(argument.toTensor());
  if (argument.isList())
    for (const c10::IValue& one : argument.toListRef()) take(one, tensors);
}

void compute(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& name = operation.schema().operator_name().name;
  // As on a GPU, tensors of the CPU may be there as single numbers, and in `x[rows]` as the rows.
  static const std::set<std::string> indexing{"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
  static const std::set<std::string> waiting{"aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"};
  for (const c10::IValue& argument : torch::jit::last(stack, operation.schema().arguments().size())) {
    Tensors tensors;
    take(argument, tensors);
    for (const Tensor& tensor : tensors)
      TORCH_CHECK(tensor.is_privateuseone() || tensor.dim() == 0 || (argument.isList() && indexing.count(name)),
                  "a tensor of the CPU, ", tensor.sizes(), ", among those of the device in ", name);
    TORCH_CHECK(!argument.isGenerator() || argument.toGenerator().device() == kDevice,
                "random numbers of the CPU for a tensor of the device in ", name);
  }
  waits += waiting.count(name);
  const bool before = within_an_operation;
  within_an_operation = true;
  at::native::cpu_fallback(operation, stack);
  within_an_operation = before;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize);
  m.impl("as_strided", at::cpu::as_strided);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("view", at::native::view);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_part_of_storage);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", number);
  m.impl("_fused_sdp_choice", plain_attention);
}

// `copy_from` sees to these two bits itself.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

// --- Autocast, of the products that our models use

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

TORCH_LIBRARY(elsewhere, m) {
  m.def("waits", [] { return waits.load(); });
}

}  // namespace
