/* y = s * (base + (x A) B) + t, each row of the batch with the adapter that its number names: an operator of ONNX Runtime.
 *
 *     base      float32 [..., O]     the outputs of M modules side by side, O = O_1 + ... + O_M; y takes its place
 *     x         float32 [..., I]     what all of them read
 *     adapters  int64   [S]          of each row the number that fedlora_adapter_add gave, or 0: none
 *     -> y      float32 [..., O]
 *
 * Rows are [S, T]: T tokens of each. Attributes: `module`, the place of the first module among an adapter's, and `sizes`, O_m.
 * An adapter's values lie where whoever added it keeps them (adapters.h), in the order in which they are read (update.h).
 */
#include "adapters.h"
#include "onnxruntime_op.h"

#define MAX_MODULES 16           /* of one node */
#define TASK_TOKENS 16           /* of one row, given to a thread */
#define SERIAL_BYTES (192 << 10) /* below it a second thread costs more than it does */

typedef struct {
    const OrtApi *api;
    int64_t first, modules, sizes[MAX_MODULES], outputs;
} Kernel;

/* One node over one batch. */
typedef struct {
    const Kernel *kernel;
    const float *base, *x;
    float *y;
    const int64_t *numbers;
    int64_t rows, length, inputs, parts; /* tokens of a row; features of x; tasks of a row */
} Job;

static void run_task(void *data, size_t task)
{
    const Job *job = data;
    const Kernel *kernel = job->kernel;
    int64_t row = (int64_t)task / job->parts, begin = (int64_t)task % job->parts * TASK_TOKENS;
    int64_t tokens = job->length - begin < TASK_TOKENS ? job->length - begin : TASK_TOKENS;
    int64_t first = row * job->length + begin, width = kernel->outputs;
    float *y = job->y + first * width;
    if (job->y != job->base) memcpy(y, job->base + first * width, sizeof(float) * (size_t)(tokens * width));
    const Adapter *adapter = adapter_of(job->numbers[row]);
    for (int64_t i = 0; adapter && i < kernel->modules; y += kernel->sizes[i++])
        add_updates(adapter, kernel->first + i, job->x + first * job->inputs, y, width, tokens);
}

static int64_t bytes_to_read(const Job *job)
{
    int64_t bytes = 0;
    for (int64_t row = 0; row < job->rows; row++) {
        const Adapter *adapter = adapter_of(job->numbers[row]);
        for (int64_t part = 0; adapter && part < adapter->parts; part++)
            for (int64_t i = 0; i < job->kernel->modules; i++) {
                const Module *module = &adapter->module[part * adapter->modules + job->kernel->first + i];
                bytes += module->rank * (module->inputs + module->outputs) * (module->is_half ? 2 : 4);
                bytes += module->scale ? 2 * module->outputs * (int64_t)sizeof(float) : 0;
            }
    }
    return bytes * job->length;
}

#define TRY(call)                   \
    do {                            \
        OrtStatus *status = (call); \
        if (status) return status;  \
    } while (0)

static OrtStatus *fail(const OrtApi *api, const char *message)
{
    return ort_create_status(api)(ORT_INVALID_ARGUMENT, message);
}

/* Nothing is read of an adapter that was not made for these modules. */
static OrtStatus *check_adapters(const Job *job)
{
    const Kernel *kernel = job->kernel;
    for (int64_t row = 0; row < job->rows; row++) {
        if (!job->numbers[row]) continue;
        const Adapter *adapter = adapter_of(job->numbers[row]);
        if (!adapter) return fail(kernel->api, "RowLora: there is no adapter of that number");
        if (kernel->first > adapter->modules - kernel->modules)
            return fail(kernel->api, "RowLora: the adapter has fewer modules than the graph");
        for (int64_t i = 0; i < kernel->modules; i++) {
            const Module *module = &adapter->module[kernel->first + i];
            if (module->inputs != job->inputs || module->outputs != kernel->sizes[i])
                return fail(kernel->api, "RowLora: the adapter was made for modules of other sizes");
        }
    }
    return NULL;
}

typedef struct {
    int64_t shape[4], elements;
    size_t rank;
    void *data;
} Tensor;

static OrtStatus *read_tensor(const OrtApi *api, const OrtContext *context, size_t place, Tensor *tensor)
{
    const OrtValue *value;
    OrtShape *info;
    size_t count = 0;
    TRY(ort_input(api)(context, place, &value));
    TRY(ort_shape(api)(value, &info));
    OrtStatus *status = ort_rank(api)(info, &tensor->rank);
    if (!status && (tensor->rank < 1 || tensor->rank > 4)) status = fail(api, "RowLora: a tensor has 1 to 4 dimensions");
    if (!status) status = ort_dimensions(api)(info, tensor->shape, tensor->rank);
    if (!status) status = ort_elements(api)(info, &count);
    ort_release_shape(api)(info);
    if (status) return status;
    tensor->elements = (int64_t)count;
    return ort_data(api)((OrtValue *)value, &tensor->data);
}

static OrtStatus *compute(void *data, OrtContext *context)
{
    const Kernel *kernel = data;
    const OrtApi *api = kernel->api;
    Tensor base, x, numbers;
    TRY(read_tensor(api, context, 0, &base));
    TRY(read_tensor(api, context, 1, &x));
    TRY(read_tensor(api, context, 2, &numbers));
    OrtValue *output;
    void *y;
    if (base.shape[base.rank - 1] != kernel->outputs)
        return fail(api, "RowLora: base does not have the outputs of its modules");
    TRY(ort_output(api)(context, 0, base.shape, base.rank, &output));
    if (!base.elements) return NULL;
    TRY(ort_data(api)(output, &y));
    int64_t tokens = base.elements / kernel->outputs, rows = numbers.elements;
    if (!rows || tokens % rows || x.elements % tokens)
        return fail(api, "RowLora: base, x and adapters do not have the same rows");
    Job job = {kernel, base.data, x.data, y, numbers.data, rows, tokens / rows, x.elements / tokens, 0};
    job.parts = (job.length + TASK_TOKENS - 1) / TASK_TOKENS;
    TRY(check_adapters(&job));
    size_t tasks = (size_t)(rows * job.parts);
    if (bytes_to_read(&job) > SERIAL_BYTES) return ort_parallel_for(api)(context, run_task, tasks, 0, &job);
    for (size_t task = 0; task < tasks; task++) run_task(&job, task);
    return NULL;
}

/* ---- what ONNX Runtime asks of an operator ------------------------------------------------------------------------- */

static OrtStatus *create(const OrtOp *op, const OrtApi *api, const OrtInfo *info, void **out)
{
    (void)op;
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return fail(api, "RowLora: out of memory");
    size_t modules = 0;
    kernel->api = api;
    OrtStatus *status = ort_attribute_int(api)(info, "module", &kernel->first);
    if (!status) status = ort_attribute_ints(api)(info, "sizes", NULL, &modules);
    if (!status && (modules < 1 || modules > MAX_MODULES || kernel->first < 0))
        status = fail(api, "RowLora: `sizes` must name 1 to 16 modules, and `module` be 0 or more");
    if (!status) status = ort_attribute_ints(api)(info, "sizes", kernel->sizes, &modules);
    kernel->modules = (int64_t)modules;
    for (size_t i = 0; !status && i < modules; i++) {
        if (kernel->sizes[i] < 1 || kernel->sizes[i] > INT32_MAX) status = fail(api, "RowLora: `sizes` must be 1 or more");
        else kernel->outputs += kernel->sizes[i];
    }
    if (status) free(kernel);
    else *out = kernel;
    return status;
}

static const char *op_name(const OrtOp *op) { return (void)op, "RowLora"; }
static const char *op_provider(const OrtOp *op) { return (void)op, NULL; }
static int input_type(const OrtOp *op, size_t i) { return (void)op, i == 2 ? ORT_INT64 : ORT_FLOAT; }
static int output_type(const OrtOp *op, size_t i) { return (void)op, (void)i, ORT_FLOAT; }
static size_t three(const OrtOp *op) { return (void)op, 3; }
static size_t one(const OrtOp *op) { return (void)op, 1; }
static int zero_of(const OrtOp *op, size_t i) { return (void)op, (void)i, 0; }
static int one_of(const OrtOp *op) { return (void)op, 1; }
static int no_end(const OrtOp *op) { return (void)op, INT32_MAX; }
static size_t in_place(int **input, int **output)
{
    *input = calloc(1, sizeof(int));
    *output = calloc(1, sizeof(int));
    return *input && *output ? 1 : 0;
}
static void release_in_place(int *input, int *output) { free(input), free(output); }
static size_t no_alias(int **input, int **output) { return *input = *output = NULL, 0; }

static const OrtOp ROW_LORA = {
    .version = ORT_VERSION_NEEDED, .name = op_name, .provider = op_provider,
    .input_type = input_type, .inputs = three, .output_type = output_type, .outputs = one, .destroy = free,
    .input_characteristic = zero_of, .output_characteristic = zero_of, .input_memory = zero_of,
    .variadic_input_arity = one_of, .variadic_input_homogeneity = one_of,
    .variadic_output_arity = one_of, .variadic_output_homogeneity = one_of,
    .create_kernel_v2 = create, .compute_v2 = compute, .start_version = one_of, .end_version = no_end,
    .may_inplace = in_place, .release_may_inplace = release_in_place,
    .alias_map = no_alias, .release_alias_map = release_in_place,
};

/* What `SessionOptions.register_custom_ops_library` calls. */
OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtApiBase *base)
{
    const OrtApi *api = base->get_api(ORT_VERSION_NEEDED);
    OrtDomain *domain;
    if (!api) return fail(base->get_api(1), "RowLora: ONNX Runtime is older than 1.18");
    TRY(ort_create_domain(api)("fedlora", &domain)); /* lives as long as the process */
    TRY(ort_domain_add(api)(domain, &ROW_LORA));
    return ort_add_domain(api)(options, domain);
}
