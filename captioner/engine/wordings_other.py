# ruff: noqa: RUF001 - other languages have letters that look like Latin ones
"""Rows of `captioner.engine.wordings` in other languages, and politeness in all of them."""

from __future__ import annotations

from captioner.engine.wordings_en import rows

POLITENESS = (
    # English
    r"(?:i am |i'm |we're |we are |my )?(?:very |so |really |terribly |deeply )?(?:sorry|apologies)"
    r"(?: about that| for (?:the|any) (?:confusion|inconvenience))?"
    r"|(?:i|we) (?:sincerely )?apologi[sz]e(?: for (?:the|any) (?:confusion|inconvenience))?"
    r"|unfortunately|regrettably|i'm afraid(?: that)?|i regret(?: that)?|hello|hi(?: there)?|hey"
    r"|oops|hmm+|uh-oh|oh|ok(?:ay)?|sure|of course|certainly|absolutely|well|note(?: that)?"
    r"|since|because|given that|currently|at the moment|right now|but|and|however"
    r"|it (?:seems|looks|appears)(?: to me)?(?: like| that| as if| as though)*|(?:that said|so)"
    r"|i (?:think|believe|must say|have to say)(?: that)?|unfortunately for (?:me|us)|still"
    r"|actually"
    # German, French, Spanish, Portuguese, Italian, Dutch, Polish, Swedish, Danish, Czech
    r"|(?:es )?tut mir (?:wirklich |sehr )?leid|leider|entschuldigung|entschuldige[n]?(?: sie)?"
    r"|ich bedaue?re|aber|hallo|es scheint(?:, dass| dass)?"
    r"|(?:je suis |nous sommes )?(?:vraiment )?désolée?s?|malheureusement|pardon|bonjour|mais"
    r"|il semble (?:que|qu)|excusez-moi|je m'excuse"
    r"|(?:lo siento|lo lamento)(?: mucho)?|lamentablemente|desafortunadamente|disculpa|disculpe"
    r"|hola"
    r"|pero|parece que|perdón|por favor"
    r"|desculpe|desculpa|lamento|sinto muito|infelizmente|olá|parece que|mas"
    r"|mi dispiace|spiacente|purtroppo|ciao|sembra che|scusa|ma"
    r"|het spijt me|sorry|helaas|maar|het lijkt erop dat|przepraszam|niestety|przykro mi|ale"
    r"|wygląda na to, że|förlåt|tyvärr|beklager|desværre|undskyld|jag är ledsen|men|bohužel"
    r"|omlouvám se"
    # Russian, Ukrainian, Turkish, Arabic, Persian, Vietnamese, Indonesian
    r"|извините|простите|к сожалению|мне (?:очень )?жаль|но|похоже(?:, что)?|вибачте|на жаль"
    r"|üzgünüm|maalesef|özür dilerim|ancak|عذر[اً]+|آسف|للأسف|أعتذر|لكن|متأسفم|متأسفانه"
    r"|(?:tôi )?(?:rất |thành thật )?xin lỗi|rất tiếc|nhưng|maaf|mohon maaf|maafkan saya|sayangnya"
    # Chinese, Japanese, Korean, Hindi, Thai
    r"|(?:非常|很|十分|真的?)?(?:抱歉|对不起|對不起|不好意思|遗憾)(?:的是)?|您好|你好|但是?|不过"
    r"|好的|目前|由于|因为|看起来|似乎"
    r"|申し訳(?:ありません|ございません|ないです)?(?:が|けど)?|すみません(?:が)?|ごめんなさい"
    r"|残念ながら|恐れ入りますが"
    r"|(?:정말 |대단히 )?(?:죄송합니다만?|죄송하지만|미안합니다|유감스럽게도|안녕하세요|아쉽게도)"
    r"|क्षमा करें|माफ़? ?कीजिए|माफ़ करें|ขออภัย(?:ครับ|ค่ะ)?|ขอโทษ(?:ครับ|ค่ะ)?"
)

_ZH_IMAGE = r"(?:图片|图像|照片|影像|圖片|圖像|附件)"
_ZH_SEE = (
    r"(?:看到|看见|看清|收到|查看|识别|訪問|访问|检测到|处理|處理|分析|解析|读取|打开|接收|获取"
    r"|加载|浏览|上传|上傳|提供|附)"
)
_ZH_NOT = r"(?:没有?|沒有?|未能?|无法|無法|不能|还不能|不支持|不具备|并未)"
_DE_IMAGE = r"(?:bild|foto|bilddatei|anhang|grafik)\w*"
_DE_DONE = (
    r"(?:sehen|gesehen|erkennen|ange\w+|beigefügt|hochgeladen|bereitgestellt|erhalten|finden"
    r"|gefunden|empfangen|verarbeiten|anzeigen|öffnen|analysieren|betrachten|ansehen|übermittelt"
    r"|einsehen|anschauen|geladen)"
)
_FR_IMAGE = r"(?:image|photo|photographie|pièce jointe|fichier)s?\b"
_ES_IMAGE = r"(?:imagen|imágenes|fotos?|fotografías?)\b"
_ES_DONE = r"(?:adjunt|inclu|subi|proporcion|recib|envia|carg|compart)\w*"
_PT_IMAGE = r"(?:imagem|imagens|fotos?|fotografias?)\b"
_RU_IMAGE = r"(?:изображени|картинк|фото)\w*"

# fmt: off
OTHERS = (
    *rows("zh", (
        ("unseen",
            rf"(?:[^\uff1a:]{{0,4}}?|[^\uff1a:]{{0,10}}?[我您你][^\uff1a:]{{0,10}}?)(?:{_ZH_NOT}",
            rf"[^\uff1a:]{{0,6}}?{_ZH_SEE}|看不到|看不见|收不到)[^\uff1a:]{{0,10}}?{_ZH_IMAGE}",
            r"(?![中里上]|内(?!容))"),
        ("unseen",
            rf"[我您你][^\uff1a:]{{0,12}}{_ZH_IMAGE}[^\uff1a:]{{0,6}}(?:没有|未|无法",
            r"|不能)[^\uff1a:]",
            r"{0,6}(?:上传|加载|显示|收到|打开|识别)"),
        ("unseen_whole",
            rf"(?:您的|你的|该|这张|此)?{_ZH_IMAGE}(?:似乎|好像)?(?:加载|上传|读取|获取|显示|解析",
            r"|识别|下载|打开)(?:失败|不成功|出错|错误|异常|不了)"),
        ("unseen_whole",
            rf"(?:您的|你的|该|这张|此)?{_ZH_IMAGE}(?:无法|不能|未能|没有)(?:加载|显示|打开|读取",
            r"|上传",
            r"|识别|访问)"),
        ("unseen_whole",
            rf"(?:没有|未检测到|未找到|缺少|无|未提供|未上传)(?:任何|有效的?)?{_ZH_IMAGE}\W*\Z"),
        ("unseen_whole",
            r"请[^\uff1a:]{0,6}(?:上传|提供|发送|附上|分享|描述)[^\uff1a:]{0,8}",
            rf"(?:{_ZH_IMAGE}|图)"),
        ("refused",
            r"(?:作为[^\uff1a]{0,16})?我[^\uff1a]{0,4}?(?:无法|不能|没法|没办法|不可以|拒绝|不会)",
            r"[^\uff1a]{0,8}(?:提供|回答|描述|帮助|帮忙|协助|满足|生成|处理|识别|讨论|完成|继续",
            r"|评论|回复|做到)"),
        ("refused",
            r"(?:无法|不能|暂时无法)(?:为您|给您|向您|对此|就此|提供|回答|描述|协助|满足|讨论",
            r"|生成|处理)[^\uff1a]{0,4}(?:这|该|您|你|此|相关|问题|请求|帮助|描述|内容|回答)"),
        ("refused",
            r"(?:该|此|这张|这个|您的|图片|本)[^\uff1a]{0,8}(?:涉嫌|可能",
            r"|包含)?[^\uff1a]{0,4}(?:违规|违反|不合规|违法|敏感|不当|不适宜|色情)"),
        ("refused", r"(?:让我们|我们)?(?:换个|换一个|聊点|聊聊)[^\uff1a]{0,6}话题|这个问题我"),
        ("error_whole",
            r"(?:当前|目前|现在|远程|后端)?(?:的)?(?:服务器?|系统|网络|接口|网关|模型|服务端",
            r"|请求|连接",
            r"|算力|后台|访问|资源|用户)[^\uff1a]{0,6}(?:繁忙|太忙|忙碌|异常|错误|故障|不可用",
            r"|超时|出错|失败|过多|频繁|过载|拥挤|未找到|不存在|中断|维护|加载中|紧张|报错)"),
        ("error_whole",
            r"[^\uff1a]{0,8}(?:额度|余额|配额|次数|流量|积分|账户|账号|套餐",
            r"|免费)[^\uff1a]{0,6}(?:不足|用尽|用完|耗尽|上限|到期|过期|欠费|冻结|超出|限制|已满)"),
        ("error_whole",
            r"(?:发生|出现|遇到|产生)(?:了)?[^\uff1a]{0,6}(?:错误|异常|问题|故障)|出错了",
            r"|出了点问题",
            r"|(?:生成|处理|调用|解析)(?:内容|请求|接口)?(?:失败|出错)|(?:无效|错误)的(?:请求",
            r"|密钥|参数)|未知错误|内部错误|操作(?:失败|频繁|太快)"),
        ("error_whole", r"请?(?:稍后|稍候|稍等|重试|再试|充值|升级)[^\uff1a]{0,8}\Z"),
        ("polite",
            r"(?:我(?:来|会|可以|将|就|才|很)|以便|这样|如果|如需|谢谢|感谢|请|作为|有什么|重新",
            r"|联系",
            r"|才能|或).*"),
    )),
    *rows("ja", (
        ("unseen",
            r"(?:私は|私には|現在|直接|添付の|送信された)*画像(?:が|を|は",
            r"|ファイルを)(?:直接)?(?:添付|表示|確認",
            r"|受け取|アップロード|見(?!ると|えると)|認識|読み込|閲覧|処理",
            r"|提供)[^、「]{0,10}(?:ません|ていない|できない|ないです)"),
        ("unseen_whole",
            r"画像を(?:再度)?(?:添付|アップロード|送信|送って|提供|共有)[^、]{0,8}(?:ください",
            r"|下さい|いただ)"),
        ("refused",
            r"[^「]{0,20}?(?:お手伝い|お答え|対応|説明|お応え|提供|回答|支援|描写|協力|ご要望に",
            r"|記述|特定)",
            r"[^「]{0,10}(?:できません|できかねます|いたしかね|致しかね|ことはできません",
            r"|出来ません)"),
        ("error_whole",
            r"(?:内部|予期しない|サーバー?(?:で|の)?|ネットワーク)?エラーが(?:発生|起き)",
            r"|サーバー?(?:が|は|の)?(?:混雑|混み合|内部エラー|エラー|応答)"),
        ("error_whole",
            r"(?:(?:しばらく|少し)(?:して|経って|時間)|時間をおいて|もう一度(?:お)?試",
            r"|再度お試し).*"),
    )),
    *rows("ko", (
        ("unseen",
            r"(?:(?:제가|저는|현재|첨부된|직접|업로드된|제공된) )*(?:이미지|사진|파일)(?:를|을",
            r"|가|이)? ?(?:직접 )?",
            r"(?:볼 수 없|확인할 수 없|첨부되지|업로드되지|제공되지|열 수 없|보이지 않(?:습니다",
            r"|네요)|없습니다\Z)"),
        ("refused",
            r"(?:[^.]{0,24}? )?(?:도와드릴|도와 드릴|설명할|설명해 드릴|제공할|답변할",
            r"|답변해 드릴|응할|묘사할|처리할|도움을 드릴) ?수(?:가)? 없"),
        ("error_whole",
            r"(?:내부 |서버 |네트워크 |알 수 없는 )?(?:서버 )?오류가? ?(?:발생|났)|서버(?:가",
            r"|에) (?:과부하|문제|응답)"),
        ("error_whole", r"(?:잠시 후|나중에 다시|다시 시도).*"),
        ("polite", r"(?:다시|이미지를|다른|이해해|감사)[^.]{0,20}(?:주세요|주시|바랍니다|합니다)"),
    )),
    *rows("de", (
        ("unseen",
            r"(?:ich|hier|momentan|aktuell|es (?:wurde|ist)|kann|wurde|du hast|sie haben",
            r"|in (?:ihrer",
            rf"|deiner) nachricht)\b.{{0,50}}?\bkein\w* (?:\w+ )?{_DE_IMAGE} (?:\w+ )?{_DE_DONE}"),
        ("unseen",
            r"(?:ich )?(?:kann|sehe)\b.{0,20}? (?:das|ihr|dein|die|diese[sn]?|angehängte\w?) ",
            rf"(?:\w+ )?{_DE_IMAGE} (?:leider |hier |nicht )*(?:nicht|{_DE_DONE})"),
        ("unseen", rf"ich sehe (?:leider |hier )*kein\w* {_DE_IMAGE}"),
        ("unseen",
            rf"(?:das|ihr|dein) {_DE_IMAGE} (?:wurde|konnte|ist) (?:leider )?nicht {_DE_DONE}"),
        ("unseen_whole", rf"(?:es ist )?kein {_DE_IMAGE} (?:vorhanden|gefunden|{_DE_DONE})"),
        ("unseen_whole",
            rf"bitte (?:laden?|senden?|schicken?|fügen?|teilen?|stellen?).{{0,30}}{_DE_IMAGE}"),
        ("refused",
            r"(?:ich|das|dabei|hierbei|dazu|damit|diese\w?|dem|darauf|als (?:ki|ein))\b.{0,60}?\b",
            r"(?:kann|darf|werde|möchte|könnte?)\b.{0,50}?(?:\bnicht\b",
            r"|\bkeine?\b).{0,40}?(?:helfen",
            r"|beschreib|unterstützen|beantworten|behilflich|erfüllen|kommentieren|identifizieren",
            r"|nachkommen|auskunft|hilfe|entsprechen|bearbeiten|liefern|geben\W*\Z)"),
        ("error_whole",
            r"(?:es ist )?(?:ein )?(?:interner |unerwarteter |unbekannter )?(?:server)?fehler\b",
            r".{0,20}(?:aufgetreten|\Z)|(?:der|das|unser) (?:server|dienst|modell|system)\b",
            r".{0,30}(?:überlastet|verfügbar|erreichbar|ausgelastet|gewartet)|zeitüberschreitung"),
        ("error_whole",
            r"(?:bitte )?versuch\w*\b.{0,30}(?:erneut|später|noch (?:ein)?mal)|(?:etwas|da) ist",
            r" (?:etwas )?schief"),
        ("polite",
            r"(?:bitte|wenn|gerne|falls|danke|ich kann ihnen|wie kann ich|können sie",
            r"|kannst du)\b.*"),
    )),
    *rows("fr", (
        ("unseen",
            r"je ne (?:vois|peux (?:pas |malheureusement pas )?(?:voir|visualiser|accéder",
            r"|analyser|traiter|ouvrir)|suis pas (?:en mesure|capable) de (?:voir|visualiser)",
            r"|parviens pas à",
            r" (?:voir|ouvrir)|reçois)(?: pas| aucune?| à| d'| l'| les?| la| des| de| votre| une?",
            rf"| cette)*(?: |(?<=')){_FR_IMAGE}(?! (?:de|du|des) )"),
        ("unseen", r"aucune? (?:image|photo|fichier) n'"),
        ("unseen",
            r"(?:l'image|la photo|votre (?:image|photo))\b.{0,20}? n'(?:a pas|est pas",
            r"|a pu).{0,20}?(?:joint|fourni|chargé|télécharg|reçu|visible|accessible|affich)"),
        ("unseen",
            r"il n'y a (?:pas d'|aucune? )(?:image|photo)(?: jointe| dans votre| fournie|\W*\Z)"),
        ("unseen", r"vous n'avez (?:pas |fourni |joint |partagé ).{0,30}(?:image|photo)"),
        ("unseen_whole",
            r"(?:veuillez|merci de|pourriez-vous|pouvez-vous) (?:me )?(?:fournir|joindre",
            r"|télécharger|envoyer|partager|décrire).{0,20}(?:image|photo)"),
        ("refused",
            r"(?:je|nous) ne (?:peux|pouvons|suis pas|souhaite|saurais|vais",
            r"|dois)\b.{0,40}?(?:aider",
            r"|décrire|assister|répondre|fournir|identifier|satisfaire|continuer|commenter",
            r"|accéder à|traiter|générer|faire ça|faire cela|discuter)"),
        ("error_whole",
            r"une erreur\b.{0,24}(?:produite|survenue)|erreur (?:interne|serveur|du serveur",
            r"|réseau)",
            r"|le (?:serveur|service|modèle) est (?:\w+ )?(?:surchargé|indisponible|occupé)",
            r"|(?:veuillez )?(?:réessaye[rz])"),
        ("polite",
            r"(?:veuillez|n'hésitez|si vous|merci|je peux|pourriez-vous|comment puis-je)\b.*"),
    )),
    *rows("es", (
        ("unseen",
            r"(?:yo )?no (?:veo|puedo (?:ver|visualizar|acceder a|procesar|analizar|abrir)",
            r"|tengo acceso",
            r" a|recibí|encuentro|he recibido|soy capaz de ver)(?: las?| ninguna| una| tu| su",
            r"| esta)*",
            rf" {_ES_IMAGE}(?! del? )"),
        ("unseen", rf"no (?:has|ha|se ha|se|fue|hay) (?:\w+ )?{_ES_DONE}.{{0,15}}{_ES_IMAGE}"),
        ("unseen", rf"no (?:has|ha|se ha|se) {_ES_DONE}.{{0,15}}{_ES_IMAGE}"),
        ("unseen", r"no hay (?:ninguna )?imagen(?: adjunta| en (?:tu|su) mensaje|\W*\Z)"),
        ("unseen", r"ninguna imagen (?:fue|ha sido|se ha)"),
        ("unseen",
            rf"(?:la|tu|su) imagen no (?:se|ha|fue|está).{{0,20}}(?:{_ES_DONE}|visible",
            r"|disponible)"),
        ("unseen_whole", rf"(?:adjunt|sub[ea]|envía|proporcion|compart)\w*.{{0,20}}{_ES_IMAGE}"),
        ("refused",
            r"(?:yo )?no (?:puedo|podemos|me es posible|estoy en condiciones|voy a",
            r"|debo)\b.{0,30}?",
            r"(?:ayudar|describir|asistir|cumplir|proporcionar|responder|continuar|identificar",
            r"|procesar|generar|hacer eso|hablar de|comentar|ofrecer)"),
        ("error_whole",
            r"(?:ha ocurrido|se (?:ha )?produ\w+|ocurrió|hubo) un (?:error|problema)",
            r"|error (?:interno",
            r"|del servidor|de red|de conexión)|el (?:servidor|servicio|modelo) (?:está",
            r"|no está)\b",
            r".{0,30}(?:saturado|sobrecargado|ocupado|disponible)|(?:intént[ae]l[oa]|intente",
            r"|vuelve a intentar|vuelva a intentar)\w*\b.*|algo salió mal"),
        ("polite",
            r"(?:si |puedo |por favor|gracias|podría|¿|en qué puedo|con gusto|estoy aquí).*"),
    )),
    *rows("pt", (
        ("unseen",
            r"(?:eu )?não (?:vejo|consigo (?:ver|visualizar|acessar|processar|abrir)|posso (?:ver",
            r"|visualizar)|tenho acceso a|tenho acesso a|recebi|encontrei)(?: as?| nenhuma| uma",
            r"| sua| à)*",
            rf" {_PT_IMAGE}(?! d[eoa] )"),
        ("unseen",
            r"nenhuma imagem (?:foi|anexada)|não há (?:nenhuma )?imagem(?: anexada|\W*\Z)",
            r"|a imagem não",
            r" (?:foi|está|pôde).{0,20}(?:anexad|enviad|carregad|visível)|você não (?:anexou",
            r"|enviou)"),
        ("refused",
            r"(?:eu )?não (?:posso|consigo|é possível|vou|podemos)\b.{0,30}?(?:ajud|descrev",
            r"|auxili|fornec|atend|respond|identific|process|gerar|continuar|fazer isso)"),
        ("error_whole",
            r"(?:ocorreu|houve|aconteceu) um (?:erro|problema)|erro (?:interno|do servidor",
            r"|no servidor)",
            r"|o (?:servidor|serviço|modelo) está\b.{0,30}(?:sobrecarregado|ocupado|indisponível)",
            r"|tente (?:novamente|de novo)|algo deu errado"),
        ("polite", r"(?:se |posso |por favor|obrigad|poderia|como posso).*"),
    )),
    *rows("it", (
        ("unseen",
            r"(?:io )?non (?:vedo|posso (?:vedere|visualizzare|accedere)|riesco a (?:vedere",
            r"|visualizzare|aprire)|ho accesso a)(?: alcuna?| nessuna| le| la| una| al)* ?(?:l'",
            r"|all')?(?:immagin|foto)\w*(?! d(?:i|el|ella) )"),
        ("unseen",
            r"nessuna immagine (?:è stata|allegata|fornita)|non (?:è stata|hai|è) (?:fornit",
            r"|allegat|caricat|present)\w*.{0,12}immagin|l'immagine non (?:è|si).{0,20}(?:caricat",
            r"|visibil|allegat)"),
        ("refused",
            r"(?:io )?non (?:posso|sono in grado|mi è possibile|potrei)\b.{0,30}?(?:aiutar",
            r"|descriver|assister|fornir|risponder|identificar|soddisfar|elaborar|farlo)"),
        ("error_whole",
            r"si è verificato un (?:errore|problema)|errore (?:interno|del server)|il (?:server",
            r"|servizio|modello) è (?:\w+ )?(?:sovraccarico|occupato)|(?:riprova|riprovare)\b.*"),
    )),
    *rows("nl", (
        ("unseen",
            r"ik (?:kan|zie|heb)\b.{0,20}?\bgeen (?:\w+ )?(?:afbeelding|foto|plaatje|bijlage",
            r"|beeld)\w*(?: (?:zien|bekijken|openen|verwerken|ontvangen|in (?:je|uw)|bijgevoegd",
            r"|toegevoegd)|\W*\Z)"),
        ("unseen",
            r"ik (?:kan|zie) (?:de|je|uw|deze|die) (?:afbeelding|foto",
            r"|bijlage)\w* (?:helaas )?niet|er is",
            r" geen (?:afbeelding|foto) (?:bij|toe|ge|mee)|(?:de|je|uw) (?:afbeelding",
            r"|foto) is niet (?:ge|bij|toe)"),
        ("refused",
            r"(?:ik (?:kan|mag|ga)|daar kan ik|dat kan ik|hier kan ik)\b.{0,40}?\b(?:niet",
            r"|geen)\b.{0,30}?(?:help|beschrijv|beantwoord|voldoen|identificer|geven\W*\Z)"),
    )),
    *rows("pl", (
        ("unseen",
            r"nie (?:widzę|mogę (?:zobaczyć|wyświetlić|otworzyć)|jestem w stanie (?:zobaczyć",
            r"|wyświetlić)|mam dostępu do|otrzymał\w+)(?: (?:żadn\w+|tego|twojego|załączon\w+",
            r"|przesłan\w+))* (?:obraz",
            r"|zdjęci|zdjęć|grafik|plik)\w*(?:\W*\Z|,| (?:w|do) (?:twojej|tej) wiadom| załącz)"),
        ("refused",
            r"nie (?:mogę|jestem w stanie|będę)\b.{0,24}?(?:pomóc|opisa|odpowiedzieć|udzielić",
            r"|spełnić|zidentyfikow|komentow)"),
    )),
    *rows("cs", (
        ("unseen",
            r"(?:nevidím|nemohu (?:zobrazit|vidět|otevřít))(?: žádný| tento| váš)? (?:obráz",
            r"|obraz|fotograf)"),
        ("refused",
            r"(?:s tím |bohužel )?(?:nemohu|nemůžu)\b.{0,24}?(?:pomoci|pomoct|popsat|odpovědět)"),
    )),
    *rows("sv", (
        ("unseen",
            r"(?:jag|jeg) (?:kan|ser|har)\b.{0,20}?\b(?:inte|inga|ingen|ikke",
            r"|intet)\b.{0,12}?(?:bild|bilde|billed)\w*(?:\W*\Z|,| (?:bifoga|vedl|vedh|uppladda))"),
        ("unseen",
            r"(?:jag|jeg) kan (?:inte|ikke) (?:se|öppna|åpne|åbne|visa) (?:några |noen |nogen ",
            r"|din |den )?(?:bild|billed)\w*(?! (?:av|af) )"),
        ("refused",
            r"(?:(?:jag|jeg) kan|(?:det )?kan (?:jag|jeg))\b.{0,20}?\b(?:inte",
            r"|ikke)\b.{0,20}?(?:hjälpa|beskriva|besvara|hjelpe|hjælpe|beskrive|svare)"),
    )),
    *rows("ru", (
        ("unseen",
            r"(?:я )?не (?:вижу|могу (?:увидеть|просмотреть|видеть|просматривать|открыть",
            r"|обработать)|получил\w?)(?: (?:ваш\w*|эт\w*|само|никак\w*|прикрепл\w*|загруж\w*))*",
            rf" {_RU_IMAGE}"),
        ("unseen",
            rf"(?:ваше |само )?{_RU_IMAGE} (?:\w+ )?не (?:\w+ )?(?:прикрепл|загру|предостав",
            r"|приложен|найден",
            r"|получен|отобра)"),
        ("unseen", rf"вы не (?:прикрепили|загрузили|предоставили|отправили).{{0,20}}{_RU_IMAGE}"),
        ("refused",
            r"(?:я )?не (?:могу|буду|в состоянии|имею права)\b.{0,30}?(?:помочь|описать|описыват",
            r"|предостав|ответить|выполнить|обсуждать|комментир|идентифиц|это сделать)"),
        ("error_whole",
            r"(?:произошла|возникла) (?:\w+ )?ошибка|ошибка (?:сервера|сети|запроса)",
            r"|внутренняя ошибка",
            r"|(?:сервер|сервис|модель) (?:\w+ )?(?:перегружен|недоступ|занят)\w*",
            r"|(?:пожалуйста, )?(?:попробуйте|повторите)\b.*|что-то пошло не так"),
    )),
    *rows("uk", (
        ("unseen",
            r"(?:я )?не (?:бачу|можу (?:побачити|переглянути|бачити))(?: (?:ваш\w*|ц\w*",
            r"|жодн\w*))* (?:зображен|картин|фото)"),
        ("refused", r"(?:я )?не (?:можу|буду)\b.{0,24}?(?:допомог|описат|надати|відповіст)"),
    )),
    *rows("tr", (
        ("unseen",
            r"(?:\w+ ){0,2}?(?:görsel|resim|resm|fotoğraf|görüntü)\w*\s(?:\w+ )?(?:göremiyorum",
            r"|göremem",
            r"|görüntüleyem|açamıyorum|bulunamadı|yüklenmedi|eklenmemiş|eklenmedi|işleyem)"),
        ("refused",
            r"(?:\w+ ){0,4}?(?:yardımcı olam|yardım edem|tarif edem|açıklayam|tanımlayam",
            r"|yanıtlayam|betimleyem)"),
    )),
    *rows("ar", (
        ("unseen",
            r"(?:أنا )?(?:لا (?:أستطيع|يمكنني|أتمكن من) (?:رؤية|عرض|مشاهدة|معالجة|فتح|الوصول إلى)",
            r"|لا أرى|لم أتلق) (?:أي |أية |هذه )?(?:ال)?صور"),
        ("unseen",
            r"لا (?:توجد|يوجد) (?:أي )?صور\w* (?:مرفق|في رسال)|لم يتم (?:إرفاق|تحميل",
            r"|تقديم) (?:أي )?صور"),
        ("refused",
            r"(?:أنا )?(?:لا (?:أستطيع|يمكنني)|غير قادر على)\b.{0,20}?(?:مساعد|وصف|تقديم|الإجابة",
            r"|المساعدة)"),
    )),
    *rows("fa", (
        ("unseen",
            r"(?:من )?نمی\W?توانم (?:این )?تصویر|(?:من )?(?:هیچ )?تصویری (?:را )?نمی\W?بینم"),
        ("refused", r"(?:من )?نمی\W?توانم\b.{0,30}?(?:کمک|توصیف|توضیح|پاسخ)"),
    )),
    *rows("vi", (
        ("unseen",
            r"(?:tôi )?không (?:thể )?(?:xem|thấy|nhìn thấy|nhận được|mở",
            r"|truy cập)(?: được)?(?: bất kỳ| các",
            r"| trực tiếp)?\s?(?:hình ảnh|hình|ảnh|bức ảnh|tấm ảnh)(?! của| người)"),
        ("refused", r"(?:tôi )?không thể\b.{0,15}?(?:giúp|mô tả|hỗ trợ|trả lời|cung cấp|đáp ứng)"),
    )),
    *rows("id", (
        ("unseen",
            r"(?:saya )?tidak (?:dapat|bisa) (?:melihat|mengakses",
            r"|membuka)(?: langsung)? (?:gambar|foto)|tidak ada gambar yang (?:di)"),
        ("refused",
            r"(?:saya )?tidak (?:dapat|bisa)\b.{0,20}?(?:membantu|menjelaskan|mendeskripsikan",
            r"|memberikan|menjawab|menggambarkan)"),
    )),
    *rows("hi", (
        ("unseen",
            r"(?:मैं |मुझे )(?:\S+ ){0,3}?(?:छवि|चित्र|तस्वीर|इमेज",
            r"|फोटो)\S*(?! में) (?:\S+ ){0,2}?(?:नहीं देख|दिखाई नहीं|नहीं दिख)"),
        ("refused", r"(?:मैं |इसमें )(?:\S+ ){0,5}?(?:मदद|सहायता|वर्णन)(?: \S+){0,2}? नहीं"),
    )),
    *rows("th", (
        ("unseen", r"(?:ฉัน|ผม|ดิฉัน)?\s?(?:ไม่สามารถ|ไม่)(?:มองเห็น|เห็น|ดู|เปิด)(?:รูป|ภาพ)(?!ของ)"),
        ("refused", r"(?:ฉัน|ผม|ดิฉัน)?\s?ไม่สามารถ(?:ช่วย|อธิบาย|ให้|ตอบ|บรรยาย)"),
    )),
)
# fmt: on
