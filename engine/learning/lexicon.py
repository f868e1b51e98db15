"""Words that hint at how long an answer will be, by kind; it knows words and reads no prompt.

The kinds and their words are of our own choosing, from what the words mean: nothing here was
counted in a data set. What each kind is worth is learned from the traffic (engine/learning/ridge
and the trees); a kind that says nothing costs a column.
"""

from __future__ import annotations

# Kind -> words and phrases of up to three words, lower case, separated by spaces.
KINDS: dict[str, str] = {
    "pick": (
        "classify|categorize|categorise|identify|name|choose|select|pick|sort|rank|order|arrange|"
        "detect|label|determine|decide|state|spot|find|match|guess|tell|unscramble|spell|"
        "recognize|recognise|group|assign|predict|verify|check|extract|locate|underline|point out"
    ),
    "compute": (
        "calculate|compute|convert|solve|count|evaluate|equation|percent|percentage|sum|average|"
        "probability|multiply|divide|subtract|integral|derivative|matrix|triangle|radius|area|"
        "value of|how many|how much|how far|how old|square root|simplify|"
        "сколько|计算|求|多少|cuántos|wie viele|how long|left over|altogether|in total|"
        "remaining|cost|costs|price|speed|answer the"
    ),
    "prove": (
        "prove|proof|theorem|lemma|show that|derive|derivation|justify|suppose|assume|let|"
        "证明|докажи|demuestra|chứng minh|exercise|problem|find all|determine all|integers|"
        "real numbers"
    ),
    "fill": (
        "fill in|fill|blank|complete the|finish the|missing word|insert|append|add a|rename|"
        "replace|capitalize|punctuate|reverse|remove|delete|substitute"
    ),
    "rewrite": (
        "rewrite|re-write|rephrase|paraphrase|edit|correct|proofread|fix|revise|reword|rearrange|"
        "restructure|transform|change|modify|reorganize|shorten|improve|polish|refine|reformat|"
        "format|grammar|combine|turn"
    ),
    "translate": (
        "translate|translation|translating|in french|in spanish|in german|to french|to spanish|"
        "to german|to english|into english|into french|into spanish|into german|to italian|"
        "to japanese|to chinese|pronounce|"
        "переведи|перевод|翻译|译成|traduce|übersetze|traduis|dịch"
    ),
    "summarise": (
        "summarize|summarise|summary|summaries|synopsis|condense|recap|tldr|gist|main idea|"
        "main point|main points|key points|takeaways|abstract|overview|"
        "总结|概括|резюме|resume el|tóm tắt"
    ),
    "explain": (
        "explain|describe|discuss|elaborate|clarify|interpret|outline|illustrate|introduce|"
        "explanation|description|teach|understand|meaning|define|definition|"
        "объясни|опиши|расскажи|解释|介绍|说明|explica|describe|erkläre|explique|giải thích"
    ),
    "compare": (
        "analyze|analyse|analysis|compare|contrast|assess|critique|examine|difference|differences|"
        "similarities|similarity|pros|cons|advantages|disadvantages|versus|vs|compared|comparison|"
        "evaluate|strengths|weaknesses"
    ),
    "create": (
        "write|create|compose|generate|design|develop|draft|make|produce|invent|construct|build|"
        "craft|prepare|come up|imagine|brainstorm|author|"
        "напиши|написать|создай|сделай|写一|编写|创建|生成|写出|escribe|crea|schreibe|erstelle|écris|crée|"
        "viết|hãy viết|escreva|scrivi"
    ),
    "propose": "suggest|suggestion|recommend|recommendation|propose|advise|advice|offer|devise",
    "provide": "give|provide|show|list|present|share|mention|enumerate|cite|get me|tell me",
    "long form": (
        "essay|story|stories|article|blog|report|novel|chapter|script|screenplay|speech|letter|"
        "dialogue|dialog|narrative|biography|tale|fanfiction|fanfic|episode|scene|monologue|"
        "thesis|proposal|documentation|conversation|interview|debate|play|sermon|lecture|wiki|"
        "case study|newsletter|whitepaper|podcast|rpg|adventure|"
        "рассказ|история|статья|сценарий|сочинение|小说|文章|故事|作文|论文|剧本|报告|novela|historia|cuento|"
        "artículo|geschichte|histoire|truyện|bài viết|whole book|journal|annotated|"
        "literature review|transcript|light novel|backstory"
    ),
    "middle form": (
        "email|e-mail|poem|song|lyrics|review|paragraph|paragraphs|post|description|advertisement|"
        "ad|rap|message|note|memo|bio|resume|cv|cover letter|press release|announcement|sonnet|"
        "stanza|verse|statement|introduction|conclusion|pitch|product description|invitation|"
        "profile|passage|verses|stanzas|"
        "стих|стихи|песня|诗歌|首诗|poema|gedicht|poème|thơ"
    ),
    "short form": (
        "sentence|sentences|title|titles|headline|slogan|word|words|phrase|phrases|tweet|caption|"
        "tagline|hashtag|hashtags|synonym|synonyms|antonym|antonyms|metaphor|simile|analogy|joke|"
        "haiku|limerick|quote|pun|riddle|acronym|motto|username|emoji|emojis|adjective|adjectives|"
        "noun|nouns|verb|verbs|adverb|pronoun|rhyme|rhymes|abbreviation|term|subject line|"
        "domain name|proverb|idiom|question|one liner|"
        "four lines|couplet|tongue twister|twister|четверостишие|название|标题|名字"
    ),
    "list": (
        "list|lists|ideas|ways|tips|steps|examples|reasons|benefits|points|suggestions|strategies|"
        "methods|facts|items|bullet|bullets|recommendations|options|factors|types|things|features|"
        "techniques|characteristics|causes|effects|challenges|skills|activities|questions|topics|"
        "goals|qualities|elements|components|categories|resources|names|places"
    ),
    "plan": (
        "plan|guide|tutorial|recipe|recipes|itinerary|syllabus|curriculum|schedule|roadmap|manual|"
        "instructions|course|lesson|agenda|workout|routine|strategy|procedure|process|program|"
        "checklist|walkthrough|how-to|cook|trip|framework|campaign|questionnaire|quiz|survey"
    ),
    "code": (
        "code|function|script|sql|query|regex|html|css|python|javascript|java|c++|rust|api|class|"
        "algorithm|implement|implementation|debug|typescript|react|bash|django|flask|program|"
        "compile|compiler|method|array|string|database|server|docker|kubernetes|aws|azure|linux|"
        "unity|shader|tensorflow|pytorch|pandas|excel|vba|powershell|node|android|flutter|php|"
        "laravel|golang|swift|kotlin|c#|loop|variable|pseudocode|app|website|endpoint|schema|"
        "код|скрипт|программу|代码|程序|函数|código|typescript|vue|nextjs|tailwind|svg|"
        "opengl|cuda|matlab|ruby|perl|scheme|ocaml|haskell|lua|assembly|arduino|esp32|plugin|"
        "extension|frontend|backend|macro|formula|import|def|void|int|const|return|println"
    ),
    "whole program": (
        "game|web app|full code|complete code|entire code|application|simulation|chatbot|bot|"
        "parser|library|module|unit tests|tests|component|from scratch|web page|webpage|website"
    ),
    "format": "table|json|csv|yaml|xml|markdown|spreadsheet|chart|diagram|latex|svg|columns|ascii",
    "fact": (
        "capital|population|president|year|born|date|distance|tall|atomic|currency|invented|"
        "founded|located|height|weight|temperature|element|planet|country|city|author of|symbol|"
        "largest|smallest|first|last|oldest|highest|longest"
    ),
    "choice": (
        "true or false|yes or no|multiple choice|following options|of the following|options|"
        "correct answer|either|or not|is it|correct word|which of|which one|choose the|select the|"
        "identify the|determine if|determine whether|decide if|tell me if|positive or|or false|"
        "correct or|if the|whether"
    ),
    "given": (
        "given|following|below|above|this|these|passage|text|sentence|input|provided|based on|"
        "context|article|document|statement|data|information|from the"
    ),
    "brief": (
        "short|brief|briefly|concise|concisely|succinct|only|just|single|quick|simple|in one|"
        "one word|one sentence|no more|at most|less than|answer with|a sentence|maximum|max|tiny|"
        "no explanation|without explanation|nothing else|do not explain|fewer than|under|"
        "кратко|简短|一句|quickly|tl;dr|no more than|word or less|words or less|characters or less|"
        "or less|or fewer|answer yes|short answer|one line|one paragraph"
    ),
    "detailed": (
        "detailed|detail|details|depth|in-depth|comprehensive|thorough|thoroughly|long|lengthy|"
        "complete|full|extensive|extensively|step-by-step|step by step|exhaustive|everything|"
        "all the|as possible|elaborate|minimum|at least|specific|rich|deep|deeply|technical|vivid|"
        "подробно|подробный|详细|完整|large|big|extremely|professional|advanced|expert|deep dive|"
        "explain each|in great"
    ),
    "relation": (
        "impact|effect|effects|role|importance|important|relationship|influence|significance|"
        "implications|causes|consequences|purpose|history|concept|works|work|happen|happened"
    ),
    "how to": "how to|how do|how can|how would|how does|how did|how should|how could|what steps",
    "what is": "what is|what's|what are|what was|what were|who is|who was|who are|what does",
    "what if": "what if|what would|imagine|suppose|if you|hypothetical|would happen|pretend",
    "why": "why|reason|because|how come",
    "who when where": "who|when|where|whose|which|whom|what year|what time|what date|what day",
    "asks": "can you|could you|would you|will you|do you|please|help me|i want|i need|i would like",
    "role": "you are|act as|you will|you must|your task|your job|roleplay|role|persona|assistant",
    "me": "i|my|me|we|our|i'm|i've|i am|i have|mine|myself",
    "you": "you|your|yourself",
    "creative": (
        "creative|funny|humorous|fictional|fantasy|character|characters|world|hero|magic|villain|"
        "scifi|sci-fi|romantic|dramatic|comedic|style of|in the style|imaginative|original|rhyming"
    ),
    "limits": (
        "do not|don't|without|avoid|never|must|should not|not use|except|cannot|can't|"
        "only output|output only|only respond|respond only|no other|exactly"
    ),
    "continue": "continue|next|finish|rest of|go on|more|again|expand|extend|longer|improve",
    "each": (
        "each|every|all|multiple|various|several|different|per|respectively|both|any|for each|"
        "of each|"
        "for every|as many|variety|many"
    ),
    "think": "think|opinion|believe|feel|feelings|thoughts|view|views|recommended|best|better|good",
    "greeting": (
        "hi|hello|hey|thanks|thank|dear|good morning|how are you|who are you|ok|okay|test|"
        "привет|你好|hola|your name|what are you|are you|call you|tell me about yourself|"
        "who made you|how old are"
    ),
    "market": (
        "marketing|business|company|product|brand|customers|customer|startup|sales|seo|youtube|"
        "video|instagram|facebook|linkedin|market|investment|financial|campaign"
    ),
    "study": (
        "research|paper|study|science|physics|chemistry|biology|medical|patient|legal|law|history|"
        "philosophy|theory|literature|economics|students|student|university|professor|exam"
    ),
}

# What may be asked for by number, and how many tokens one of it is, roughly.
UNITS: dict[str, float] = {
    "word": 1.35, "words": 1.35, "character": 0.25, "characters": 0.25, "letters": 0.3,
    "sentence": 22.0, "sentences": 22.0, "line": 11.0, "lines": 11.0, "paragraph": 95.0,
    "paragraphs": 95.0, "page": 550.0, "pages": 550.0, "stanza": 40.0, "stanzas": 40.0,
    "verse": 35.0, "verses": 35.0, "chapter": 500.0, "chapters": 500.0, "tokens": 1.0,
    "minute": 170.0, "minutes": 170.0, "slides": 60.0, "scenes": 150.0, "bullets": 22.0,
    "字": 1.0, "слов": 2.2,
    "palabras": 1.6, "wörter": 1.8, "mots": 1.6, "từ": 1.5, "seconds": 3.0, "second": 3.0,
}  # fmt: skip

NUMBERS: dict[str, int] = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30,
    "fifty": 50, "hundred": 100, "dozen": 12, "couple": 2, "few": 3, "several": 4, "some": 4,
    "single": 1, "a": 1, "an": 1, "both": 2,
}  # fmt: skip

# Plural nouns after a number that are measures of something, not things to be listed.
MEASURES: tuple[str, ...] = tuple(
    text
    for line in (
        "years months weeks days hours minutes seconds times miles dollars degrees percent",
        "meters metres feet inches grams pounds euros kilometers km cm kg liters points people",
        "numbers units players cents adults others is was has as this its us",
    )
    for text in line.split()
)
