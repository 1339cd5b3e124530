"""The supported classes of models, and the module that reads the config.json of each. No torch is imported.

Only the module of the current model is imported, so that a boot does not depend on the number of families.
"""

from __future__ import annotations

from importlib import import_module

from ember.engine.description.family import Family
from ember.engine.description.pooling import Kind

# The class that saved the weights -> its `model_type`, and its Family: the module in this room, and the name.
ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", "llama.LLAMA"),
    "Llama4ForCausalLM": ("llama4_text", "llama4.LLAMA4"),
    "MistralForCausalLM": ("mistral", "mistral.MISTRAL"),
    "MinistralForCausalLM": ("ministral", "mistral.MISTRAL"),
    "Qwen2ForCausalLM": ("qwen2", "qwen.QWEN2"),
    "Qwen3ForCausalLM": ("qwen3", "qwen.QWEN3"),
    "ApertusForCausalLM": ("apertus", "apertus.APERTUS"),
    "ArceeForCausalLM": ("arcee", "llama.ARCEE"),
    "CwmForCausalLM": ("cwm", "llama.CWM"),
    "InternLMForCausalLM": ("internlm", "llama.INTERNLM1"),
    "OrionForCausalLM": ("orion", "llama.ORION"),
    "AquilaForCausalLM": ("aquila", "llama.LLAMA"),
    "XverseForCausalLM": ("xverse", "llama.LLAMA"),
    "MiMoForCausalLM": ("mimo", "qwen.MIMO"),
    "BaichuanForCausalLM": ("baichuan", "baichuan.BAICHUAN"),
    "ChatGLMModel": ("chatglm", "chatglm.CHATGLM"),
    "BailingMoeV2ForCausalLM": ("bailing_moe", "bailing.BAILING_V2"),
    "NanoChatForCausalLM": ("nanochat", "nanochat.NANOCHAT"),
    "PersimmonForCausalLM": ("persimmon", "persimmon.PERSIMMON"),
    "HyperCLOVAXForCausalLM": ("hyperclovax", "granite.HYPERCLOVAX"),
    "ExaoneForCausalLM": ("exaone", "exaone.EXAONE3"),
    "SeedOssForCausalLM": ("seed_oss", "llama.SEED_OSS"),
    "Exaone4ForCausalLM": ("exaone4", "exaone.EXAONE4"),
    "HunYuanDenseV1ForCausalLM": ("hunyuan_v1_dense", "hunyuan.HUNYUAN_DENSE"),
    "Jais2ForCausalLM": ("jais2", "jais.JAIS2"),
    "Olmo2ForCausalLM": ("olmo2", "olmo.OLMO2"),
    "SmolLM3ForCausalLM": ("smollm3", "smollm.SMOLLM3"),
    "Starcoder2ForCausalLM": ("starcoder2", "starcoder.STARCODER2"),
    "CohereForCausalLM": ("cohere", "cohere.COHERE"),
    "Cohere2ForCausalLM": ("cohere2", "cohere.COHERE2"),
    "Cohere2MoeForCausalLM": ("cohere2_moe", "cohere.COHERE2_MOE"),
    "Ernie4_5ForCausalLM": ("ernie4_5", "ernie.ERNIE4_5"),
    "GlmForCausalLM": ("glm", "glm.GLM"),
    "StableLmForCausalLM": ("stablelm", "stablelm.STABLELM"),
    "GraniteForCausalLM": ("granite", "granite.GRANITE"),
    "HeliumForCausalLM": ("helium", "glm.HELIUM"),
    "Glm4ForCausalLM": ("glm4", "glm.GLM4"),
    "Ministral3ForCausalLM": ("ministral3", "mistral.MINISTRAL3"),
    "NemotronForCausalLM": ("nemotron", "nemotron.NEMOTRON"),
    "OlmoForCausalLM": ("olmo", "olmo.OLMO1"),
    "Olmo3ForCausalLM": ("olmo3", "olmo.OLMO3"),
    "InternLM2ForCausalLM": ("internlm2", "internlm.INTERNLM2"),
    "InternLM3ForCausalLM": ("internlm3", "internlm.INTERNLM3"),
    "MiniCPMForCausalLM": ("minicpm", "minicpm.MINICPM"),
    "GemmaForCausalLM": ("gemma", "gemma.GEMMA1"),
    "Gemma2ForCausalLM": ("gemma2", "gemma.GEMMA2"),
    "VaultGemmaForCausalLM": ("vaultgemma", "gemma.VAULTGEMMA"),
    "Gemma3ForCausalLM": ("gemma3_text", "gemma.GEMMA3"),
    "Gemma4ForCausalLM": ("gemma4_text", "gemma4.GEMMA4"),
    "Gemma4UnifiedForCausalLM": ("gemma4_unified_text", "gemma4.UNIFIED"),
    "Phi3ForCausalLM": ("phi3", "phi.PHI3"),
    "PhiForCausalLM": ("phi", "phi.PHI"),
    "GPT2LMHeadModel": ("gpt2", "gpt2.GPT2"),
    "GPTBigCodeForCausalLM": ("gpt_bigcode", "gpt2.GPT_BIGCODE"),
    "GPTJForCausalLM": ("gptj", "gptj.GPTJ"),
    "CodeGenForCausalLM": ("codegen", "gptj.CODEGEN"),
    "GPTNeoForCausalLM": ("gpt_neo", "gpt_neo.GPT_NEO"),
    "GPTNeoXForCausalLM": ("gpt_neox", "gpt_neox.GPT_NEOX"),
    "FalconForCausalLM": ("falcon", "falcon.FALCON"),
    "BloomForCausalLM": ("bloom", "bloom.BLOOM"),
    "MptForCausalLM": ("mpt", "mpt.MPT"),
    "Qwen2MoeForCausalLM": ("qwen2_moe", "qwen_moe.QWEN2_MOE"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "qwen_moe.QWEN3_MOE"),
    "GraniteMoeHybridForCausalLM": ("granitemoehybrid", "granite_hybrid.GRANITE_HYBRID"),
    "BambaForCausalLM": ("bamba", "granite_hybrid.BAMBA"),
    "FalconH1ForCausalLM": ("falcon_h1", "falcon_h1.FALCON_H1"),
    "NemotronHForCausalLM": ("nemotron_h", "nemotron_h.NEMOTRON_H"),
    "JambaForCausalLM": ("jamba", "jamba.JAMBA"),
    "MambaForCausalLM": ("mamba", "jamba.MAMBA"),
    "FalconMambaForCausalLM": ("falcon_mamba", "jamba.FALCON_MAMBA"),
    "Mamba2ForCausalLM": ("mamba2", "nemotron_h.MAMBA2"),
    "Lfm2ForCausalLM": ("lfm2", "lfm2.LFM2"),
    "Lfm2MoeForCausalLM": ("lfm2_moe", "lfm2.LFM2_MOE"),
    "Lfm3ForCausalLM": ("lfm3", "lfm2.LFM3"),
    "GraniteSWAForCausalLM": ("granite_swa", "granite.GRANITE_SWA"),
    "GraniteMoeSWAForCausalLM": ("granitemoe_swa", "granite.GRANITE_MOE_SWA"),
    "Qwen3_5ForCausalLM": ("qwen3_5_text", "qwen3_5.QWEN3_5"),
    "Qwen3_5MoeForCausalLM": ("qwen3_5_moe_text", "qwen3_5.QWEN3_5_MOE"),
    "Qwen3NextForCausalLM": ("qwen3_next", "qwen3_5.QWEN3_NEXT"),
    "Qwen3VLMoeForCausalLM": ("qwen3_vl_moe_text", "qwen_moe.QWEN3_VL_MOE"),
    "MixtralForCausalLM": ("mixtral", "mixtral.MIXTRAL"),
    "PhimoeForCausalLM": ("phimoe", "mixtral.PHIMOE"),
    "MiniMaxM2ForCausalLM": ("minimax_m2", "mixtral.MINIMAX_M2"),
    "OlmoeForCausalLM": ("olmoe", "olmoe.OLMOE"),
    "GraniteMoeForCausalLM": ("granitemoe", "granite.GRANITE_MOE"),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5_moe", "ernie.ERNIE4_5_MOE"),
    "GptOssForCausalLM": ("gpt_oss", "gpt_oss.GPT_OSS"),
    "Glm4MoeForCausalLM": ("glm4_moe", "glm_moe.GLM4_MOE"),
    "Dots1ForCausalLM": ("dots1", "glm_moe.DOTS1"),
    "SolarOpenForCausalLM": ("solar_open", "glm_moe.SOLAR_OPEN"),
    "ExaoneMoeForCausalLM": ("exaone_moe", "exaone.EXAONE_MOE"),
    "HYV3ForCausalLM": ("hy_v3", "hunyuan.HUNYUAN_V3"),
    "HunYuanMoEV1ForCausalLM": ("hunyuan_v1_moe", "hunyuan.HUNYUAN_MOE"),
    "FlexOlmoForCausalLM": ("flex_olmo", "olmoe.FLEX_OLMO"),
    "GraniteMoeSharedForCausalLM": ("granitemoeshared", "granite.GRANITE_MOE_SHARED"),
    "MellumForCausalLM": ("mellum", "qwen_moe.MELLUM"),
    "Glm4vMoeForCausalLM": ("glm4v_moe_text", "glm_moe.GLM4V_MOE"),
    "DeepseekV2ForCausalLM": ("deepseek_v2", "deepseek.V2"),
    "DeepseekV3ForCausalLM": ("deepseek_v3", "deepseek.V3"),
    "Glm4MoeLiteForCausalLM": ("glm4_moe_lite", "deepseek.GLM_LITE"),
    "Mistral4ForCausalLM": ("mistral4", "deepseek.MISTRAL4"),
    "YoutuForCausalLM": ("youtu", "deepseek.YOUTU"),
    "MiniCPM3ForCausalLM": ("minicpm3", "minicpm.MINICPM3"),
    "OPTForCausalLM": ("opt", "opt.OPT"),
    # Other names of the same classes.
    "LLaMAForCausalLM": ("llama", "llama.LLAMA"),
    "AquilaModel": ("aquila", "llama.LLAMA"),
    "MPTForCausalLM": ("mpt", "mpt.MPT"),
    "PhiMoEForCausalLM": ("phimoe", "mixtral.PHIMOE"),
    "StableLMEpochForCausalLM": ("stablelm", "stablelm.STABLELM"),
    "BaiChuanForCausalLM": ("baichuan", "baichuan.BAICHUAN"),
    "ChatGLMForConditionalGeneration": ("chatglm", "chatglm.CHATGLM"),
}
# The same of encoders, by their class without a head.
ENCODERS = {
    "BertModel": ("bert", "bert.BERT"),
    "RobertaModel": ("roberta", "bert.ROBERTA"),
    "XLMRobertaModel": ("xlm-roberta", "bert.ROBERTA"),
    "CamembertModel": ("camembert", "bert.ROBERTA"),
    "DistilBertModel": ("distilbert", "distilbert.DISTILBERT"),
    "MPNetModel": ("mpnet", "mpnet.MPNET"),
    "AlbertModel": ("albert", "albert.ALBERT"),
    "ElectraModel": ("electra", "electra.ELECTRA"),
    "ModernBertModel": ("modernbert", "modernbert.MODERNBERT"),
    "NomicBertModel": ("nomic_bert", "nomic_bert.NOMIC_BERT"),
    "GteModel": ("gte", "nomic_bert.GTE"),
    "EuroBertModel": ("eurobert", "modernbert.EUROBERT"),
    "DebertaV2Model": ("deberta-v2", "deberta.DEBERTA_V2"),
    "NewModel": ("new", "nomic_bert.GTE"),
}
# `model_type` -> the class that is meant by a file without `architectures`: the first one.
MODEL_TYPES = {
    model_type: architecture for architecture, (model_type, _) in reversed((ARCHITECTURES | ENCODERS).items())
}

# The ends of the names of classes without a head for tokens. `...Model` comes last, as it is the end of others.
_ENDS: dict[str, Kind] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForProcessRewardModel": "process_reward",
    "ForRewardModel": "reward",
    "SpladeSparseEmbeddingModel": "sparse",
    "ForMaskedLM": "model",
    "ForPreTraining": "model",
    "TextModel": "model",
    "Model": "model",
}

_LATE = "ColBERT"  # the beginning of the names of classes that make vectors of tokens: ColBERTModernBertModel
_LATE_BERT = ("HF_ColBERT", "ColBERTModel")
WHOLE_TEXT = "Bidirectional"  # in the names of classes of decoders that see the whole text: LlamaBidirectionalModel


def with_head(architecture: str | None) -> tuple[str | None, Kind]:
    """The class that generates and has the same decoder, or the encoder's class without a head, and what the given
    class ends in."""
    if architecture is None or architecture in ARCHITECTURES:
        return architecture, "generate"
    if architecture in _LATE_BERT:
        return "BertModel", "late_interaction"
    if architecture.startswith(_LATE):
        return with_head(architecture.removeprefix(_LATE))[0], "late_interaction"
    for end, kind in _ENDS.items():
        if architecture.endswith(end):
            stem = architecture.removesuffix(end).removesuffix("Text").removesuffix(WHOLE_TEXT)
            for name in (f"{stem}ForCausalLM", f"{stem}LMHeadModel", f"{stem}Model"):
                if name in ARCHITECTURES or name in ENCODERS:
                    return name, kind
    return architecture, "generate"


def find_family(architecture: str) -> Family:
    """The family of one of `ARCHITECTURES` or `ENCODERS`."""
    _, place = (ARCHITECTURES | ENCODERS)[architecture]
    module, name = place.split(".")
    family: Family = getattr(import_module(f"ember.engine.description.families.{module}"), name)
    return family
