/* What a custom operator of ONNX Runtime needs of its C interface, by the places that interface promises to keep.
 *
 * The functions stand in one table to which versions only append (onnxruntime_c_api.h: "older versions of the OrtApi never
 * change"), so a place is a number. Everything here is there since version 18. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION_NEEDED 18

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtContext OrtContext;
typedef struct OrtInfo OrtInfo;
typedef struct OrtDomain OrtDomain;
typedef struct OrtOptions OrtOptions;
typedef struct OrtOp OrtOp;
typedef void (*OrtFunction)(void);

typedef struct {
    OrtFunction functions[275];
} OrtApi;

typedef struct {
    const OrtApi *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} OrtApiBase;

enum { ORT_FLOAT = 1, ORT_INT64 = 7 };        /* ONNXTensorElementDataType */
enum { ORT_REQUIRED = 0 };                    /* OrtCustomOpInputOutputCharacteristic */
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT };  /* OrtErrorCode */

#define ORT_CALL(api, place, result, ...) ((result(*)(__VA_ARGS__))(api)->functions[place])
#define ort_create_status(api) ORT_CALL(api, 0, OrtStatus *, int, const char *)
#define ort_create_domain(api) ORT_CALL(api, 26, OrtStatus *, const char *, OrtDomain **)
#define ort_domain_add(api) ORT_CALL(api, 27, OrtStatus *, OrtDomain *, const OrtOp *)
#define ort_add_domain(api) ORT_CALL(api, 28, OrtStatus *, OrtOptions *, OrtDomain *)
#define ort_data(api) ORT_CALL(api, 51, OrtStatus *, OrtValue *, void **)
#define ort_rank(api) ORT_CALL(api, 61, OrtStatus *, const OrtShape *, size_t *)
#define ort_dimensions(api) ORT_CALL(api, 62, OrtStatus *, const OrtShape *, int64_t *, size_t)
#define ort_elements(api) ORT_CALL(api, 64, OrtStatus *, const OrtShape *, size_t *)
#define ort_shape(api) ORT_CALL(api, 65, OrtStatus *, const OrtValue *, OrtShape **)
#define ort_attribute_int(api) ORT_CALL(api, 86, OrtStatus *, const OrtInfo *, const char *, int64_t *)
#define ort_input(api) ORT_CALL(api, 90, OrtStatus *, const OrtContext *, size_t, const OrtValue **)
#define ort_output(api) ORT_CALL(api, 91, OrtStatus *, OrtContext *, size_t, const int64_t *, size_t, OrtValue **)
#define ort_release_shape(api) ORT_CALL(api, 99, void, OrtShape *)
#define ort_attribute_ints(api) ORT_CALL(api, 163, OrtStatus *, const OrtInfo *, const char *, int64_t *, size_t *)
#define ort_parallel_for(api) \
    ORT_CALL(api, 274, OrtStatus *, const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *)

/* OrtCustomOp as of version 18. */
struct OrtOp {
    uint32_t version;
    void *(*create_kernel)(const OrtOp *, const OrtApi *, const OrtInfo *);
    const char *(*name)(const OrtOp *);
    const char *(*provider)(const OrtOp *);
    int (*input_type)(const OrtOp *, size_t);
    size_t (*inputs)(const OrtOp *);
    int (*output_type)(const OrtOp *, size_t);
    size_t (*outputs)(const OrtOp *);
    void (*compute)(void *, OrtContext *);
    void (*destroy)(void *);
    int (*input_characteristic)(const OrtOp *, size_t);
    int (*output_characteristic)(const OrtOp *, size_t);
    int (*input_memory)(const OrtOp *, size_t);
    int (*variadic_input_arity)(const OrtOp *);
    int (*variadic_input_homogeneity)(const OrtOp *);
    int (*variadic_output_arity)(const OrtOp *);
    int (*variadic_output_homogeneity)(const OrtOp *);
    OrtStatus *(*create_kernel_v2)(const OrtOp *, const OrtApi *, const OrtInfo *, void **);
    OrtStatus *(*compute_v2)(void *, OrtContext *);
    OrtStatus *(*infer_shape)(const OrtOp *, void *);
    int (*start_version)(const OrtOp *);
    int (*end_version)(const OrtOp *);
    size_t (*may_inplace)(int **, int **);
    void (*release_may_inplace)(int *, int *);
    size_t (*alias_map)(int **, int **);
    void (*release_alias_map)(int *, int *);
};
