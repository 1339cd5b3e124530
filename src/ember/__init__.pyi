from ember.front.offline.errors import PromptError as PromptError
from ember.front.offline.llm import LLM as LLM
from ember.front.offline.outputs import BeamSearchOutput as BeamSearchOutput
from ember.front.offline.outputs import BeamSearchSequence as BeamSearchSequence
from ember.front.offline.outputs import ClassificationOutput as ClassificationOutput
from ember.front.offline.outputs import ClassificationRequestOutput as ClassificationRequestOutput
from ember.front.offline.outputs import CompletionOutput as CompletionOutput
from ember.front.offline.outputs import EmbeddingOutput as EmbeddingOutput
from ember.front.offline.outputs import EmbeddingRequestOutput as EmbeddingRequestOutput
from ember.front.offline.outputs import Logprob as Logprob
from ember.front.offline.outputs import PoolingOutput as PoolingOutput
from ember.front.offline.outputs import PoolingRequestOutput as PoolingRequestOutput
from ember.front.offline.outputs import RequestOutput as RequestOutput
from ember.front.offline.outputs import ScoringOutput as ScoringOutput
from ember.front.offline.outputs import ScoringRequestOutput as ScoringRequestOutput
from ember.front.offline.params import BeamSearchParams as BeamSearchParams
from ember.front.offline.params import GuidedDecodingParams as GuidedDecodingParams
from ember.front.offline.params import PoolingParams as PoolingParams
from ember.front.offline.params import SamplingParams as SamplingParams
from ember.front.offline.params import StructuredOutputsParams as StructuredOutputsParams
from ember.front.offline.prompts import TextPrompt as TextPrompt
from ember.front.offline.prompts import TokensPrompt as TokensPrompt

__version__: str
