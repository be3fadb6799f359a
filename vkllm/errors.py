"""Every error that vkllm raises on purpose.

    VkllmError
      ModelFileError        a file is bad, truncated or not what it says
      ModelNotFound         no such model, file or download
      UnsupportedModel      a sound file that vkllm cannot run (architecture, format, shape)
      StateFileError        a saved state is damaged, does not fit the model, or cannot be read or written
      DeviceError           Vulkan, Kompute or the layer
        NoDevice            there is no Vulkan device, or not the one asked for
        UnsupportedDevice   the device or its driver lacks what kernels need, or computes wrongly
        OutOfDeviceMemory   an allocation failed, or a plan does not fit
        DeviceLost          the driver, the GPU or the engine process died
        DeviceTimeout       a wait ended at its time limit
      RequestError          what a caller asked for
        ContextOverflow     more tokens than the context holds
        InvalidParameter    a parameter out of its range
        QueueFull           as many requests wait as may
        DeadlineExceeded    an answer did not end in time

A message says what happened, where, and what to do, in one sentence. `assert` is for our own
mistakes; users' files, devices and requests get one of these.
"""


class VkllmError(Exception):
    """Base of all errors that vkllm raises on purpose.

    >>> try:
    ...     llm.generate("Hello", temperature=-1)
    ... except VkllmError as error:
    ...     print(error)
    temperature must be a number between 0 and 100, not -1
    """


class ModelFileError(VkllmError):
    """A model file is damaged, truncated or malformed.

    >>> try:
    ...     LLM("cut.gguf")  # a download that was interrupted
    ... except ModelFileError as error:
    ...     print(error)
    cut.gguf: not a sound GGUF: it ends inside its header, ...; download the file again.
    """


class ModelNotFound(VkllmError):
    """No model of that name or path, or its download failed.

    >>> try:
    ...     LLM("smolm2")
    ... except ModelNotFound as error:
    ...     print(error)
    There is no model 'smolm2'; known names are smollm2, ...
    """


class UnsupportedModel(VkllmError):
    """The file is sound, but vkllm cannot run what it holds.

    >>> try:
    ...     LLM("mamba.gguf")
    ... except UnsupportedModel as error:
    ...     print(error)
    mamba.gguf: architecture 'mamba' is not supported; supported: ...
    """


class StateFileError(VkllmError):
    """A saved state is damaged, does not belong to the loaded model, or cannot be read or written.

    >>> try:
    ...     llm.load_state("cut.gguf")
    ... except StateFileError as error:
    ...     print(error)
    /...cut.gguf: not a sound saved state ...; run the conversation again and save it again
    """


class DeviceError(VkllmError):
    """Vulkan, Kompute or the layer failed.

    >>> try:
    ...     plan_model("smollm2", device="Voodoo")
    ... except DeviceError as error:
    ...     print(type(error).__name__)
    NoDevice
    """


class NoDevice(DeviceError):
    """No Vulkan device, or not the one asked for.

    >>> try:
    ...     LLM(device="Voodoo")
    ... except NoDevice as error:
    ...     print(error)
    No Vulkan device is called 'Voodoo'; choose among ...
    """


class UnsupportedDevice(DeviceError):
    """The device or its driver lacks what vkllm's kernels need, or computes wrongly.

    >>> try:
    ...     llm = LLM("smollm2")
    ... except UnsupportedDevice as error:
    ...     print(error, "or try device='llvmpipe', which computes on the CPU")
    """


class OutOfDeviceMemory(DeviceError):
    """A device allocation failed, or a model cannot fit.

    >>> try:
    ...     LLM(vram_limit=10**6, ram_limit=10**6)
    ... except OutOfDeviceMemory as error:
    ...     print(error)
    the model needs ... and this device can give it ...
    """


class DeviceLost(DeviceError):
    """The device or the engine process was lost; a new engine has to be started.

    The model stays usable: its next request starts a new engine, unless it was closed.

    >>> llm.close()
    >>> try:
    ...     llm.generate("Hello")
    ... except DeviceLost as error:
    ...     print(error)
    the engine was closed; open the model again
    """


class DeviceTimeout(DeviceError):
    """The device did not finish within the time limit of a wait.

    >>> try:
    ...     answer = llm.generate("Hello", max_tokens=1)
    ... except DeviceTimeout:
    ...     print("the GPU hangs; try again, or choose another with device=...")
    """


class RequestError(VkllmError):
    """The request itself cannot be served.

    >>> try:
    ...     llm.generate("")
    ... except RequestError as error:
    ...     print(error)
    the prompt is empty; give at least one token of it
    """


class ContextOverflow(RequestError):
    """Prompt and answer need more tokens than the context holds.

    >>> try:
    ...     llm.generate("a long story " * 10_000)
    ... except ContextOverflow as error:
    ...     print(error)
    the prompt has ... tokens, but the context holds ...; shorten the prompt or ask for a larger context ...

    n_prompt, n_ctx: both counts, where they are known.
    """

    n_prompt: int | None = None
    n_ctx: int | None = None

    def __init__(self, message: str, *, n_prompt: int | None = None, n_ctx: int | None = None) -> None:
        super().__init__(message)
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


class InvalidParameter(RequestError):
    """A parameter of a request is out of its range.

    >>> try:
    ...     llm.chat([{"role": "user", "content": "Hello"}], top_p=2)
    ... except InvalidParameter as error:
    ...     print(error)
    top_p must be a number between 0 and 1, not 2
    """


class QueueFull(RequestError):
    """As many requests wait as the queue holds.

    >>> try:
    ...     answer = llm.generate("Hello", max_tokens=1)
    ... except QueueFull:
    ...     print("busy; try again later")
    """


class DeadlineExceeded(RequestError):
    """A request did not end by the time that it was given.

    >>> try:
    ...     answer = llm.generate("Hello", max_tokens=1)
    ... except DeadlineExceeded:
    ...     print("too slow")
    """


def counted(n: int, noun: str) -> str:
    """A count in words of a message: "1 token", "2 tokens"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
